//! Words of a line as `iptables-save` and `ipset save` quote them.

/// Splits a line at blanks; a part in double quotes is one word, with `\` before what would end it.
pub(super) fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut rest = line.chars();
    while let Some(char) = rest.next() {
        match char {
            '"' => (quoted, any) = (!quoted, true),
            '\\' if quoted => word.extend(rest.next()),
            char if char.is_whitespace() && !quoted => {
                if any {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            char => {
                word.push(char);
                any = true;
            }
        }
    }
    if any {
        all.push(word);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_a_word_together() {
        assert_eq!(
            words(r#"-m comment --comment "a \"b\" -j DROP"  -j ACCEPT"#),
            ["-m", "comment", "--comment", r#"a "b" -j DROP"#, "-j", "ACCEPT"]
        );
        assert_eq!(words(r#"x "" y"#), ["x", "", "y"]);
    }
}

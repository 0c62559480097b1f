//! Inputs with damage, the same ones in every run: the input of a number is a function of the seeds and the number.

use fastrand::Rng;

use crate::MAX_LEN;

/// Where the sequence of all damaged inputs begins.
pub const SEED: u64 = 0x4869_7665_7761_7921;

/// Changes that one input has at most.
const CHANGES: usize = 4;
/// Repetitions of a part: enough to exhaust a stack of 2 MB with a few hundred bytes per level.
const REPETITIONS: usize = 8192;
/// Numbers at the edges of what readers take.
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "31",
    "32",
    "33",
    "68",
    "255",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "-1",
    "1e400",
];

/// Input `number`: a seed with up to four changes. The first inputs are the seeds themselves.
pub fn input(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    if let Some(seed) = usize::try_from(number).ok().and_then(|number| seeds.get(number)) {
        return seed.clone();
    }
    let mut rng = Rng::with_seed(SEED.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    // The earlier of two: short ones come first, and more of them are read in the same time.
    let earlier = |rng: &mut Rng| rng.usize(..seeds.len()).min(rng.usize(..seeds.len()));
    let mut data = if seeds.is_empty() { Vec::new() } else { seeds[earlier(&mut rng)].clone() };
    for _ in 0..rng.usize(1..=CHANGES) {
        change(&mut data, seeds, &mut rng);
    }
    data.truncate(MAX_LEN);
    data
}

/// One change. An empty input only gets longer.
fn change(data: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    if data.is_empty() {
        data.extend((0..rng.usize(1..64)).map(|_| rng.u8(..)));
        return;
    }
    let at = rng.usize(..data.len());
    match rng.u8(..10) {
        0 => data[at] ^= 1 << rng.u8(..8),
        1 => data[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'-', b'\n']).unwrap_or(&0),
        2 => drop(data.splice(at..at, (0..rng.usize(1..8)).map(|_| rng.u8(..)).collect::<Vec<_>>())),
        3 => drop(data.drain(part(data, rng))),
        4 => {
            let copy = data[part(data, rng)].to_vec();
            data.splice(at..at, copy);
        }
        5 => {
            let other = rng.choice(seeds).map_or(&[][..], Vec::as_slice);
            let donated = if other.is_empty() { Vec::new() } else { other[part(other, rng)].to_vec() };
            data.splice(part(data, rng), donated);
        }
        6 => replace_word(
            data,
            rng,
            |word| word.iter().all(u8::is_ascii_digit),
            |rng, _| rng.choice(NUMBERS).unwrap_or_default().as_bytes().to_vec(),
        ),
        7 => replace_word(data, rng, |_| true, |rng, words| rng.choice(words).cloned().unwrap_or_default()),
        8 => data.truncate(at),
        _ => {
            let few = at..(at + rng.usize(1..4)).min(data.len());
            let times = rng.usize(1..(REPETITIONS / few.len()).max(2));
            let copies = data[few.clone()].repeat(times);
            data.splice(few, copies);
        }
    }
}

/// A part of `data` that is not empty, short ones more often.
fn part(data: &[u8], rng: &mut Rng) -> std::ops::Range<usize> {
    let from = rng.usize(..data.len());
    let longest = (data.len() - from).min(1 << rng.u32(..12));
    from..from + rng.usize(1..=longest)
}

/// Replaces one word (letters, digits and what addresses and ids have in them) that is `fit` by what `with` makes of
/// all.
fn replace_word(
    data: &mut Vec<u8>,
    rng: &mut Rng,
    fit: impl Fn(&[u8]) -> bool,
    with: impl FnOnce(&mut Rng, &[Vec<u8>]) -> Vec<u8>,
) {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"._/".contains(byte);
    let mut words = Vec::new();
    let mut at = 0;
    for word in data.split(|byte| !is_word(byte)) {
        if !word.is_empty() && fit(word) {
            words.push(at..at + word.len());
        }
        at += word.len() + 1;
    }
    let Some(place) = rng.choice(&words).cloned() else { return };
    let words: Vec<_> = words.into_iter().map(|word| data[word].to_vec()).collect();
    let new = with(rng, &words);
    data.splice(place, new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_the_same_every_time_and_differ_from_each_other() {
        let seeds = [b"{\"port\": 80, \"name\": \"web\"}".to_vec(), b"-A INPUT -s 10.0.0.0/8".to_vec()];
        let all: Vec<_> = (0..1000).map(|number| input(&seeds, number)).collect();
        assert_eq!(all[..2], seeds);
        assert!(all.iter().enumerate().all(|(number, one)| *one == input(&seeds, number as u64)));
        assert!(all.iter().all(|one| one.len() <= MAX_LEN));
        let mut distinct = all;
        distinct.sort();
        distinct.dedup();
        assert!(distinct.len() > 900, "{}", distinct.len());
    }

    #[test]
    fn without_seeds_there_are_inputs_too() {
        assert!((0..100).any(|number| !input(&[], number).is_empty()));
        assert!((0..100).any(|number| !input(&[Vec::new()], number).is_empty()));
    }
}

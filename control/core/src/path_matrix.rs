//! What is wrong with the paths between all nodes, as a manager's agent knows it: its own probes, and what the other
//! agents have reported of theirs. Two nodes that both report on one pair tell more than each alone: where only one of
//! them hears the other, the direction that fails is known.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use crate::{
    path_check::{Finding, Gravity, remedy, vanishing},
    path_report::{PathReport, Row},
    probe::{State, period, settles},
};

/// Findings at most: what everybody sees of one node's cable is one fault, and a thousand lines help nobody.
const MOST: usize = 50;

/// What is known of the paths from a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Its probes have shown this.
    Rows {
        /// So long ago.
        age: Duration,
        /// What they have shown.
        report: Arc<PathReport>,
    },
    /// Its agent is of a version that does not say.
    Nothing {
        /// Which one.
        version: String,
    },
    /// It says what makes no sense.
    Nonsense {
        /// Why.
        why: String,
    },
    /// There is no report that would be worth anything.
    Silence {
        /// For so long.
        lasts: Duration,
    },
}

/// A node, and what is known of the paths from it.
#[derive(Clone, Debug)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// Its tunnel address.
    pub address: Ipv4Addr,
    /// Its UDP port for VXLAN.
    pub port: u16,
    /// This is the node that asks; what its own row says is told by [`crate::path_check::findings`].
    pub own: bool,
    /// What is known.
    pub said: Said,
}

impl NodeRow {
    /// Its report, if there is one.
    pub fn report(&self) -> Option<&PathReport> {
        match &self.said {
            Said::Rows { report, .. } => Some(report),
            _ => None,
        }
    }

    /// Why there is none.
    pub fn missing(&self) -> Option<String> {
        let name = &self.hostname;
        match &self.said {
            Said::Rows { .. } => None,
            Said::Nothing { version } if version.is_empty() => {
                Some(format!("node {name} runs an agent that sends no rows"))
            }
            Said::Nothing { version } => {
                Some(format!("node {name} runs an agent that sends no rows (version {version})"))
            }
            Said::Nonsense { why } => Some(format!("node {name} sends rows that make no sense: {why}")),
            Said::Silence { lasts } => Some(format!("no report from {name} for {} s", lasts.as_secs())),
        }
    }

    fn at(&self) -> String {
        format!("{} ({})", self.hostname, self.address)
    }
}

/// Within this time after a manager's agent has started the others have told it of their paths.
const REPORTED: Duration = Duration::from_secs(15);

/// What is wrong that the own row does not say already: errors first, then by node.
pub fn findings(nodes: &[NodeRow]) -> Vec<Finding> {
    let matrix = Matrix::new(nodes);
    let mut found = matrix.pairs();
    found.extend(nodes.iter().filter(|node| !node.own).flat_map(|node| matrix.row(node)));
    found.sort_by(|a, b| (a.severity, &a.from, &a.node).cmp(&(b.severity, &b.from, &b.node)));
    if found.len() > MOST {
        let more = found.len() - MOST;
        let severity = found[MOST].severity;
        found.truncate(MOST);
        found.push(Finding {
            severity,
            from: None,
            node: String::new(),
            problem: format!("{more} more problems between nodes; most paths fail from and to {}", matrix.worst()),
            remedy: "`hiveway check --json` has every row (`nodes`)".to_owned(),
        });
    }
    found
}

struct Matrix<'n> {
    nodes: BTreeMap<Ipv4Addr, &'n NodeRow>,
    rows: BTreeMap<(Ipv4Addr, Ipv4Addr), &'n Row>,
}

impl<'n> Matrix<'n> {
    fn new(nodes: &'n [NodeRow]) -> Self {
        let by_address: BTreeMap<_, _> = nodes.iter().map(|node| (node.address, node)).collect();
        let rows = nodes.iter().flat_map(|node| {
            let rows = node.report().into_iter().flat_map(|report| &report.rows);
            rows.map(|row| ((node.address, row.to), row))
        });
        // What a node says of itself, or of nodes that are not there (any more), is nothing.
        let rows = rows.filter(|((from, to), _)| from != to && by_address.contains_key(to)).collect();
        Self { nodes: by_address, rows }
    }

    /// Pairs of nodes between which traffic does not pass, one finding each.
    fn pairs(&self) -> Vec<Finding> {
        let blocked = self.rows.iter().filter(|(_, row)| row.is_blocked());
        let pairs: BTreeSet<_> = blocked.map(|((from, to), _)| (*from.min(to), *from.max(to))).collect();
        pairs.into_iter().filter_map(|(one, other)| self.pair(one, other)).collect()
    }

    fn pair(&self, one: Ipv4Addr, other: Ipv4Addr) -> Option<Finding> {
        let (a, b) = (self.nodes[&one], self.nodes[&other]);
        let (there, back) = (self.rows.get(&(one, other)).copied(), self.rows.get(&(other, one)).copied());
        // The one that sees a fault is named first; this node, if it does.
        let (a, b, there, back) = match there.filter(|row| row.is_blocked()) {
            Some(row) if !b.own || back.is_none_or(|back| !back.is_blocked()) => (a, b, row, back),
            _ => (b, a, back.filter(|row| row.is_blocked())?, there),
        };
        let silent = |row: Option<&Row>| row.filter(|row| row.state == State::Failing).map(|row| row.heard);
        let answers_missing = silent(back);
        // Only the other node knows which direction it is.
        let news = there.port.is_none() && !there.heard && answers_missing == Some(true);
        if a.own && !news {
            return None;
        }
        if there.port == Some(a.port) {
            let problem = format!(
                "tunnels of {} arrive at {} on an interface that is no uplink, and are not accepted",
                b.at(),
                a.at()
            );
            return Some(self.error(a, b, problem, remedy::UPLINKS.to_owned()));
        }
        if let Some(port) = there.port {
            return Some(self.error(
                a,
                b,
                format!("{} sends its tunnels to UDP port {port}, {} uses port {}", b.at(), a.at(), a.port),
                remedy::ONE_PORT.to_owned(),
            ));
        }
        let (seconds, port) = (there.since, a.port);
        let lost = |from: &NodeRow, to: &NodeRow, why: String| {
            let problem = format!(
                "packets from {} to {}, UDP port {port}, are lost on the way: {} has not answered {} for {seconds} s, {why}",
                from.at(),
                to.at(),
                b.hostname,
                a.hostname
            );
            let remedy = remedy::let_pass(from.address, to.address, port, &to.hostname);
            self.error(a, b, problem, remedy)
        };
        let both = || format!("let UDP between {} and {}, port {port}, pass both ways", a.address, b.address);
        Some(match (there.heard, answers_missing) {
            (true, None | Some(false)) => lost(a, b, "but what it sends arrives".to_owned()),
            (false, Some(true)) => lost(b, a, format!("though what {} sends arrives there", a.hostname)),
            (true, Some(true)) => self.error(
                a,
                b,
                format!(
                    "{} and {} have not answered each other for {seconds} s, UDP port {port}, though probes of both arrive",
                    a.at(),
                    b.at()
                ),
                both(),
            ),
            // The other node's next probe is not due yet.
            (false, _) if u64::from(seconds) <= settles(period(self.nodes.len())).as_secs() => self.error(
                a,
                b,
                format!(
                    "{} has not answered {} for {seconds} s: packets to UDP port {port} are lost, in which direction does \
                     not show yet, or no agent runs on {}",
                    b.at(),
                    a.at(),
                    b.hostname
                ),
                both(),
            ),
            (false, Some(false)) => self.error(
                a,
                b,
                format!(
                    "nothing passes between {} and {}, UDP port {port}, in either direction: neither has answered the \
                     other for {} s",
                    a.at(),
                    b.at(),
                    back.map_or(seconds, |back| seconds.min(back.since))
                ),
                both(),
            ),
            (false, None) => self.error(
                a,
                b,
                format!(
                    "{} has not answered {} for {seconds} s, and nothing arrives from it: packets to UDP port {port} are \
                     lost in both directions or from {} to {}, or no agent runs on {}",
                    b.at(),
                    a.at(),
                    b.hostname,
                    a.hostname,
                    b.hostname
                ),
                both(),
            ),
        })
    }

    fn error(&self, from: &NodeRow, to: &NodeRow, problem: String, remedy: String) -> Finding {
        let from = (!from.own).then(|| from.hostname.clone());
        Finding { severity: Gravity::Error, from, node: to.hostname.clone(), problem, remedy }
    }

    /// What is wrong with another node's row besides paths that do not pass.
    fn row(&self, node: &'n NodeRow) -> Vec<Finding> {
        let name = &node.hostname;
        let finding = |severity, node: &str, problem, remedy: &str| Finding {
            severity,
            from: Some(name.clone()),
            node: node.to_owned(),
            problem,
            remedy: remedy.to_owned(),
        };
        if let Some(problem) = node.missing() {
            // This agent, or that one, has just started.
            if matches!(node.said, Said::Silence { lasts } if lasts < REPORTED) {
                return Vec::new();
            }
            let remedy = match node.said {
                Said::Nothing { .. } => "upgrade the agent on that node; until then ask it there: `hiveway check`",
                Said::Nonsense { .. } => "bring its agent and this one to the same version",
                _ => "look at the agent on that node, and at its links to managers: `hiveway status`",
            };
            return vec![finding(Gravity::Warning, name, problem, remedy)];
        }
        let mut found = Vec::new();
        let report = node.report();
        if let Some(fault) = report.and_then(|report| report.fault.as_ref()) {
            let problem = format!("{name} sends no probes: {fault}");
            found.push(finding(Gravity::Error, name, problem, &format!("on {name}: see `hiveway status`")));
        }
        for row in report.into_iter().flat_map(|report| &report.rows) {
            let Some(to) = self.nodes.get(&row.to).filter(|_| row.to != node.address) else { continue };
            if row.is_lossy() {
                let problem = format!(
                    "{:.0} % of {name}'s last {} probes of {} were lost",
                    100.0 * row.loss(),
                    row.counted,
                    to.at()
                );
                found.push(finding(Gravity::Warning, &to.hostname, problem, remedy::LINKS));
            }
            if let Some(limit) = row.limit {
                let problem = format!(
                    "packets from {} to {} of {} vanish, and no router says so; {name} sends no larger ones now",
                    node.at(),
                    to.at(),
                    vanishing(limit, row.passed)
                );
                let remedy = remedy::narrow(node.address, to.address, limit);
                found.push(finding(Gravity::Warning, &to.hostname, problem, &remedy));
            }
        }
        found
    }

    /// The nodes with the most paths to or from them that do not pass.
    fn worst(&self) -> String {
        let mut blocked = BTreeMap::<Ipv4Addr, usize>::new();
        for (from, to) in self.rows.iter().filter(|(_, row)| row.is_blocked()).map(|(pair, _)| pair) {
            *blocked.entry(*from).or_default() += 1;
            *blocked.entry(*to).or_default() += 1;
        }
        let mut all: Vec<_> = blocked.into_iter().collect();
        all.sort_by_key(|(address, count)| (Reverse(*count), *address));
        let worst: Vec<_> = all.iter().take(3).map(|(address, _)| self.nodes[address].at()).collect();
        if worst.is_empty() { "-".to_owned() } else { worst.join(", ") }
    }
}

#[cfg(test)]
mod tests;

//! What is asked for on the command line.

use errback::{Builder, Pool};

use crate::Part;
use crate::report::Row;

const USAGE: &str = "\
beside_peers [--part NAME,…] [options]       (no part: a table of the most important figures)

  --part NAME     a part, several, or a whole bench by its letter:
                    A: chain million gather      B: timers      C: rtt calls pool
                    D: latency burst scale map payload python start memory memory_get kill_busy kill_idle
                  or tables for people, of cost by amount of work:
                    growth: growth_jobs growth_payload growth_workers growth_timers growth_chains
  --name NAME     what the figures are listed under (default: errback), to tell two builds apart
  --no-batching   the pool sends each job by itself
  --one-core      everything on core 0, workers included; the figures' name gets the ending _samecore
  --quick         fewer rounds, and nothing that takes long
  --max BYTES     the largest payload (default: 512 MiB, and 1 GiB for growth)
  --plots DIR     where growth is drawn, as SVG";

/// How many workers the pools have, as those of the peers.
pub(crate) const WORKERS: usize = 2;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    name: Option<String>,
    pub(crate) batching: bool,
    pub(crate) one_core: bool,
    pub(crate) quick: bool,
    pub(crate) max: Option<usize>,
    pub(crate) plots: Option<String>,
}

impl Options {
    /// What the arguments say, or how to use them.
    pub(crate) fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Options, &'static str> {
        let mut options = Options {
            parts: Vec::new(),
            name: None,
            batching: true,
            one_core: false,
            quick: false,
            max: None,
            plots: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(USAGE);
            match argument.as_str() {
                "--part" => options.parts.extend(value()?.split(',').map(str::to_owned)),
                "--name" => options.name = Some(value()?),
                "--no-batching" => options.batching = false,
                "--one-core" => options.one_core = true,
                "--quick" => options.quick = true,
                "--max" => options.max = Some(value()?.parse().map_err(|_| USAGE)?),
                "--plots" => options.plots = Some(value()?),
                _ => return Err(USAGE),
            }
        }
        options.check()
    }

    fn check(self) -> Result<Options, &'static str> {
        let known = |part: &String| {
            crate::PARTS
                .iter()
                .any(|(bench, name, _)| part == bench || part == name)
        };
        match self.parts.iter().all(known) {
            true => Ok(self),
            false => Err(USAGE),
        }
    }

    /// The arguments that say the same, but for the parts.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let max = self.max.map(|bytes| bytes.to_string());
        let valued = [
            ("--max", &max),
            ("--name", &self.name),
            ("--plots", &self.plots),
        ];
        for (option, value) in valued {
            arguments.extend(
                value
                    .iter()
                    .flat_map(|value| [option.to_owned(), value.clone()]),
            );
        }
        let switches = [
            (!self.batching, "--no-batching"),
            (self.one_core, "--one-core"),
            (self.quick, "--quick"),
        ];
        arguments.extend(
            switches
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, switch)| (*switch).to_owned()),
        );
        arguments
    }

    /// The parts that were asked for, in the order in which they are listed.
    pub(crate) fn chosen(&self, parts: &[Part]) -> Vec<Part> {
        let is_chosen =
            |(bench, name, _): &&Part| self.parts.iter().any(|part| part == bench || part == name);
        parts.iter().filter(is_chosen).copied().collect()
    }

    /// Where the figures of a variant go: the default's is the empty string.
    pub(crate) fn row(&self, bench: &'static str, variant: &str) -> Row {
        let name = self.name.as_deref().unwrap_or("errback");
        let batching = match (self.batching, bench) {
            (false, "D") => "_no_batching",
            _ => "",
        };
        let place = match self.one_core {
            true => "_samecore",
            false => "",
        };
        Row::new(bench, format!("{name}{batching}{variant}{place}"))
    }

    /// How often to do what is done `full` times for figures that count.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        match self.quick {
            true => full.div_ceil(3),
            false => full,
        }
    }

    /// How many of something that `full` of are enough for figures that count.
    pub(crate) fn count(&self, full: usize) -> usize {
        match self.quick {
            true => full / 10,
            false => full,
        }
    }

    /// How far to go where it is `full` for figures that count.
    pub(crate) fn largest(&self, full: usize) -> usize {
        match self.quick {
            true => full / 100,
            false => full,
        }
    }

    /// The pool that is measured; no worker has been started.
    pub(crate) fn pool(&self) -> Builder {
        Pool::builder().size(WORKERS).batching(self.batching)
    }
}

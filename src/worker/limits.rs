//! The limits that a worker sets for itself, on its host's word.

use rustix::process::{Resource, Rlimit};

use super::Leaving;
use crate::wire::HostHello;

/// Sets what the hello asks for. A limit that is lower already cannot be raised, and need not be.
pub(super) fn set(hello: &HostHello) -> Result<(), Leaving> {
    if let Some(bytes) = hello.memory_limit {
        // An allocation that goes over it ends the process: Rust prints "memory allocation of … bytes failed" and aborts.
        limit("memory", Resource::As, bytes, bytes)?;
    }
    if let Some(seconds) = hello.cpu_limit {
        // SIGXCPU at the first, which ends the process; SIGKILL at the second, where somebody handles that.
        limit("CPU", Resource::Cpu, seconds, seconds.saturating_add(1))?;
    }
    if let Some(descriptors) = hello.open_files {
        limit("open files", Resource::Nofile, descriptors, descriptors)?;
    }
    Ok(())
}

fn limit(what: &str, resource: Resource, soft: u64, hard: u64) -> Result<(), Leaving> {
    let inherited = rustix::process::getrlimit(resource);
    let lower = |limit: u64, inherited: Option<u64>| {
        Some(inherited.map_or(limit, |inherited| inherited.min(limit)))
    };
    let limits = Rlimit {
        current: lower(soft, inherited.current),
        maximum: lower(hard, inherited.maximum),
    };
    rustix::process::setrlimit(resource, limits).map_err(|errno| {
        Leaving::Refused(format!(
            "the limit of {what}, {soft}, cannot be set: {errno}"
        ))
    })
}

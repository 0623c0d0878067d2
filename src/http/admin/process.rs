//! What the process uses of the machine.

use rustix::process::{Resource, getrlimit};

/// Bytes of resident memory; `None` if the system does not say (other than Linux).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Open files and connections; `None` if the system does not say (other than Linux).
pub fn open_files() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // The folder that was read is one of them.
    u64::try_from(open.saturating_sub(1)).ok()
}

/// Files and connections that may be open; `None` if there is no limit.
pub fn max_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn open_files_are_counted() {
        let before = super::open_files().unwrap();
        let open: Vec<_> = (0..100).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        let after = super::open_files().unwrap();
        // Other tests open and close files meanwhile.
        assert!(after >= before + 50 && after < super::max_files().unwrap_or(u64::MAX), "{before} and then {after}");
        drop(open);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_holds_some_memory() {
        let bytes = super::resident_bytes().unwrap();
        assert!((100_000..100_000_000_000).contains(&bytes), "{bytes}");
    }
}

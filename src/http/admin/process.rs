//! The resources that the process uses.

use rustix::process::{Resource, getrlimit};

/// The resident memory in bytes; `None` if unknown, as on systems other than Linux.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The number of open files, including connections; `None` if unknown, as on systems other than Linux.
pub fn open_files() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // Reading the directory opened one of them.
    u64::try_from(open.saturating_sub(1)).ok()
}

/// The limit on open files, including connections; `None` if there is none.
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
    fn the_resident_memory_is_plausible() {
        let bytes = super::resident_bytes().unwrap();
        assert!((100_000..100_000_000_000).contains(&bytes), "{bytes}");
    }
}

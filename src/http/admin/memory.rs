//! The memory that the process holds.

/// Bytes resident, where the system tells (Linux).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_holds_some_memory() {
        let bytes = super::resident_bytes().unwrap();
        assert!((100_000..100_000_000_000).contains(&bytes), "{bytes}");
    }
}

//! The kernels that the virtual machine can boot. Each is the kernel of a release of Debian, and
//! the machine's root file system is of the same release.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12: clsact instead of tcx.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// The release of Debian whose `linux-image-amd64` is this kernel.
    pub(super) fn release(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Whether a kernel with this version, as `uname -r` prints it, is this kernel.
    pub(super) fn includes(self, version: &str) -> bool {
        version.strip_prefix(self.name()).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_belongs_to_one_kernel() {
        assert!(Kernel::V6_1.includes("6.1.0-50-amd64"));
        assert!(!Kernel::V6_1.includes("6.12.57+deb13-amd64"));
        assert!(Kernel::V6_12.includes("6.12.57+deb13-amd64"));
        assert!(!Kernel::V6_12.includes("6.1.0-50-amd64"));
    }
}

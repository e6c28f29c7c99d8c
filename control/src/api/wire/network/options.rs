//! Converts the driver options of a network (`--opt`) in both directions. The request to create a
//! network and the form of a network call it.
//!
//! Every option has a line in [`read`]; an option without one is refused by name.

use std::collections::HashMap;

use weft_model::{FIRST_VNI, Vni, spec::NetworkSpec};

use crate::api::{error::ApiError, features};

/// The MTU of the tasks' links, as in Docker.
const MTU: &str = "com.docker.network.driver.mtu";
/// The VNI of the network, as in Docker's overlay driver.
pub(super) const VNI: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Packets of the network cross the underlay only inside of WireGuard. As in Docker.
pub(super) const ENCRYPTED: &str = "encrypted";

/// The driver options of one request. See [`NetworkSpec`] for the fields.
#[derive(Debug, Default)]
pub(super) struct DriverOptions {
    pub(super) mtu: Option<u32>,
    pub(super) vni: Option<Vni>,
    pub(super) encrypted: bool,
}

/// Reads the field `Options` of a request.
pub(super) fn read(requested: &HashMap<String, String>) -> Result<DriverOptions, ApiError> {
    let mut options = DriverOptions::default();
    let mut sorted: Vec<_> = requested.iter().collect();
    // The error is about the first option by name, whatever the order of the map.
    sorted.sort_unstable();
    for (key, value) in sorted {
        match key.as_str() {
            MTU => options.mtu = Some(read_mtu(value)?),
            VNI => options.vni = Some(read_vni(value)?),
            ENCRYPTED => options.encrypted = read_encrypted(value)?,
            other => return Err(features::NETWORK_OPTIONS.refusal_of(&format!("the network option {other}"))),
        }
    }
    Ok(options)
}

/// Docker encrypts if the option is there, whatever its value. A value that says the opposite is
/// refused.
fn read_encrypted(value: &str) -> Result<bool, ApiError> {
    match value {
        "" | "1" | "true" => Ok(true),
        _ => Err(ApiError::Invalid(format!(
            "invalid value {value:?} of the network option {ENCRYPTED}: give none, or leave the option out"
        ))),
    }
}

fn read_mtu(text: &str) -> Result<u32, ApiError> {
    text.parse().map_err(|_| ApiError::Invalid(format!("invalid MTU {text:?} ({MTU}): give a number of octets")))
}

fn read_vni(text: &str) -> Result<Vni, ApiError> {
    if text.contains(',') {
        return Err(features::SEVERAL_VNIS.refusal());
    }
    text.parse().ok().and_then(Vni::new).ok_or_else(|| {
        ApiError::Invalid(format!("invalid VNI {text:?} ({VNI}): give a number from {FIRST_VNI} to {}", (1 << 24) - 1))
    })
}

/// The options that the user has given.
pub(super) fn write(spec: &NetworkSpec) -> HashMap<String, String> {
    let mtu = spec.mtu.map(|mtu| (MTU.to_owned(), mtu.to_string()));
    let vni = spec.vni.map(|vni| (VNI.to_owned(), vni.to_string()));
    let encrypted = spec.encrypted.then(|| (ENCRYPTED.to_owned(), String::new()));
    mtu.into_iter().chain(vni).chain(encrypted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn check_refused(pairs: &[(&str, &str)], text: &str) {
        let error = read(&options(pairs)).expect_err("an option that cannot be honoured").to_string();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn known_options_are_read_and_written() {
        let requested = options(&[(MTU, "1400"), (VNI, "4097"), (ENCRYPTED, "")]);
        let DriverOptions { mtu, vni, encrypted } = read(&requested).expect("known options");
        assert_eq!((mtu, vni.map(Vni::get), encrypted), (Some(1400), Some(4097), true));
        let spec = NetworkSpec { mtu, vni, encrypted, ..NetworkSpec::new("app".parse().expect("a name")) };
        assert_eq!(write(&spec), requested);
    }

    #[test]
    fn options_that_cannot_be_honoured_are_refused_by_name() {
        check_refused(&[("encrypted", "false")], "leave the option out");
        check_refused(&[("mtu", "1400"), ("zone", "x")], "the network option mtu");
        check_refused(&[(MTU, "big")], "invalid MTU \"big\"");
        check_refused(&[(VNI, "4097,4098")], "several VNIs on one network");
        for vni in ["", "x", "4095", "16777216", "-1"] {
            check_refused(&[(VNI, vni)], "give a number from 4096 to 16777215");
        }
    }
}

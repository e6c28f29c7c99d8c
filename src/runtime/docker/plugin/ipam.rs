//! The IPAM driver. It chooses nothing: the networks' subnets and the tasks' addresses are those of
//! the cluster state, and come with each call. So it has nothing to remember and to release.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::wire::{RequestAddress, RequestPool};

const ADDRESS_SPACE: &str = "weft";

pub(super) fn capabilities() -> Value {
    // The addresses have their MACs from the network driver.
    json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })
}

pub(super) fn address_spaces() -> Value {
    json!({ "LocalDefaultAddressSpace": ADDRESS_SPACE, "GlobalDefaultAddressSpace": ADDRESS_SPACE })
}

/// The id of a pool contains its subnet, because the engine sends nothing else with an address.
pub(super) fn request_pool(request: &RequestPool) -> Result<Value, String> {
    if request.pool.is_empty() {
        return Err("weft's networks are created by weft: use its socket instead of the engine's".to_owned());
    }
    let pool: IpNetwork = request.pool.parse().map_err(|error| format!("the subnet {}: {error}", request.pool))?;
    Ok(json!({ "PoolID": format!("{}/{pool}", request.address_space), "Pool": pool, "Data": {} }))
}

pub(super) fn request_address(request: &RequestAddress) -> Result<Value, String> {
    let subnet = request.pool.split_once('/').and_then(|(_, subnet)| subnet.parse::<IpNetwork>().ok());
    let subnet = subnet.ok_or_else(|| format!("{} is no pool of weft", request.pool))?;
    if request.address.is_empty() {
        return Err("weft chooses the addresses of its networks: use its socket instead of the engine's".to_owned());
    }
    let address = request.address.parse().map_err(|error| format!("the address {}: {error}", request.address))?;
    if !subnet.contains(address) {
        return Err(format!("the address {address} is not in {subnet}"));
    }
    let address = IpNetwork::new(address, subnet.prefix()).map_err(|error| error.to_string())?;
    Ok(json!({ "Address": address, "Data": {} }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(pool: &str, address: &str) -> Result<Value, String> {
        request_address(&RequestAddress { pool: pool.to_owned(), address: address.to_owned() })
    }

    #[test]
    fn an_address_has_the_prefix_of_its_pool() {
        for (subnet, address, want) in
            [("10.0.1.0/24", "10.0.1.7", "10.0.1.7/24"), ("fd00:1::/64", "fd00:1::7", "fd00:1::7/64")]
        {
            let request = RequestPool { address_space: "weft".to_owned(), pool: subnet.to_owned() };
            let pool = request_pool(&request).expect("a pool");
            assert_eq!(pool["Pool"], subnet);
            let address = address_of(pool["PoolID"].as_str().expect("an id"), address).expect("an address");
            assert_eq!(address["Address"], want);
        }
    }

    #[test]
    fn nothing_is_chosen() {
        let request = RequestPool { address_space: "weft".to_owned(), pool: String::new() };
        assert!(request_pool(&request).is_err_and(|text| text.contains("use its socket")));
        assert!(address_of("weft/10.0.1.0/24", "").is_err_and(|text| text.contains("use its socket")));
        assert!(address_of("weft/10.0.1.0/24", "10.0.2.7").is_err_and(|text| text.contains("not in 10.0.1.0/24")));
        assert!(address_of("10.0.1.0", "10.0.1.7").is_err_and(|text| text.contains("no pool")));
    }
}

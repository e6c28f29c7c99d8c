//! WireGuard devices in network namespaces with a veth pair between them. Each test has namespaces
//! and links of its own. They need root: `cargo xtask test wireguard`.

mod wireguard {
    mod network;
    mod sessions;
    mod traffic;
}

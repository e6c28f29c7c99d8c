//! Fails the build if the eBPF object was not compiled from the current source in `ebpf/`.

use std::{error::Error, fs, path::Path};

#[path = "../ebpf/source_hash.rs"]
mod source_hash;

fn main() -> Result<(), Box<dyn Error>> {
    let ebpf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf");
    let record = ebpf.join("weft.bpf.txt");
    for source in source_hash::SOURCES {
        println!("cargo::rerun-if-changed={}", ebpf.join(source).display());
    }
    println!("cargo::rerun-if-changed={}", record.display());
    println!("cargo::rerun-if-changed={}", ebpf.join("weft.bpf.o").display());
    let actual = source_hash::source_hash(&ebpf)?;
    let text = fs::read_to_string(&record).map_err(|error| format!("{}: {error}", record.display()))?;
    if source_hash::recorded(&text, "source") != Some(actual.as_str()) {
        println!(
            "cargo::error=ebpf/weft.bpf.o was not compiled from the current source: run `cargo xtask ebpf` (the hash of the source is {actual})"
        );
    }
    Ok(())
}

//! Refuses to embed an eBPF object that was not made from the source beside it.

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
            "cargo::error=ebpf/weft.bpf.o is older than its source: rebuild it with `cargo xtask ebpf` (source is now {actual})"
        );
    }
    Ok(())
}

#!/bin/sh
# Compiles weft's crates for libFuzzer: the compiler adds counters that show which code an input reaches.
# cargo runs this instead of rustc for the crates of the workspace (RUSTC_WORKSPACE_WRAPPER, in cargo's
# reference, "Environment variables"). A build script is a program without libFuzzer.
case " $* " in
*" build_script_"*) exec "$@" ;;
esac
# libFuzzer replaces functions of the C library and finds the originals with dlsym(3), which a static
# program does not have.
for argument; do
    shift
    if [ "$argument" = target-feature=+crt-static ]; then argument=target-feature=-crt-static; fi
    set -- "$@" "$argument"
done
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares

#!/bin/sh
# The first program of the virtual machine. Mounts what systemd mounts and runs /payload/command.
# Writes its output to the second serial port, and its exit code to the third.
# MODULES and FOLDER are in /payload/settings.
. /payload/settings
export HOME=/root PATH=/payload:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

run() {
    mount -t proc proc /proc && mount -t sysfs sysfs /sys || return
    # Only cgroup2: no hierarchy of version 1.
    mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t bpf bpf /sys/fs/bpf || return
    mkdir -p /dev/pts /dev/shm && mount -t devpts devpts /dev/pts && mount -t tmpfs tmpfs /dev/shm || return
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /tmp || return
    # Programs of the benchmark read keys from /dev/stdin.
    ln -s /proc/self/fd /dev/fd && ln -s /proc/self/fd/0 /dev/stdin || return
    ln -s /proc/self/fd/1 /dev/stdout && ln -s /proc/self/fd/2 /dev/stderr || return
    hostname weft-vm && ip link set lo up || return
    modprobe --all $MODULES || return
    # The tests find the binary at the path at which it was built.
    mkdir -p "$FOLDER" && mount --bind /payload "$FOLDER" || return
    # As systemd does.
    ulimit -n 524288
    cd /root && sh /payload/command
}

# Otherwise the port adds a carriage return to each line.
stty -F /dev/ttyS1 raw
run </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
# Return when the host has read everything.
stty -F /dev/ttyS1 115200
stty -F /dev/ttyS2 115200
echo o >/proc/sysrq-trigger
# Without this the kernel panics before it is off.
while :; do sleep 1; done

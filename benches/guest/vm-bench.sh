#!/bin/busybox sh
# Guest part of `cargo xtask bench vm`: answers each line of its console with ANSWER and the line.
# With LOAD=1 it also writes to a quarter of its memory, over and over, as fast as it can.
B=/bin/busybox
LOAD=${1:-0}
if [ "$LOAD" = 1 ]; then
    size=$($B awk '/MemTotal/{print int($2 / 4096)}' /proc/meminfo)
    while :; do
        $B dd if=/dev/zero of=/dev/shm/load bs=1M count="$size" conv=notrunc 2>/dev/null
    done &
fi
$B stty -echo
echo "READY"
while read -r line; do
    echo "ANSWER $line"
done

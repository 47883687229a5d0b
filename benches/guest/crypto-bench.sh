#!/bin/busybox sh
# What openssl computes per second, the same in a guest and natively: bytes of AES-128-GCM, SHA-256
# and SHA-512 in blocks of 16 KiB, and RSA-2048 signatures. Prints 'RATE name number' for each.
# SECS is the time of each measurement; OPENSSL names the program.
B=/bin/busybox
OPENSSL=${OPENSSL:-/usr/bin/openssl}
speed() { $OPENSSL speed -mr -elapsed -seconds ${SECS:-2} "$@" 2>/dev/null; }
for name in aes-128-gcm sha256 sha512; do
    speed -bytes 16384 -evp $name | $B awk -F: -v name=$name '/^\+F:/ { print "RATE", name, $4 }'
done
speed rsa2048 | $B awk -F: '/^\+F2:/ { print "RATE rsa-2048-sign", $4 }'
echo "CRYPTO-DONE"

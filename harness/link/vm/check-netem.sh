#!/usr/bin/env bash
# Runs the tests of the `kernel` backend on a Debian kernel in an emulated machine, for hosts whose
# own kernel lacks sch_netem. Optional: no other test depends on it. README.md says what it showed.
#
# Needs the Debian packages qemu-system-x86, busybox-static and xz-utils, and a kernel image package,
# which it downloads with `apt-get download` unless KERNEL_DEB names a file. It installs nothing,
# needs no root and no KVM, and writes to WORK only.
#
#   harness/link/vm/check-netem.sh [FILTER…]     # tests whose name contains a FILTER; default kernel_
#
# Variables, all optional:
#   WORK            where everything is put (default: target/vm)
#   KERNEL_PACKAGE  the image package (default: the one that linux-image-amd64 depends on)
#   KERNEL_DEB      its file, already downloaded
#   CARGO           the cargo to build with (default: cargo)
#   LIMIT_S         seconds of this machine's time after which the emulated one is stopped (3600)
#
# Ends with the code of the tests; 4 if something is missing here; 5 if the machine did not get
# as far as the tests.
set -euo pipefail

cd "$(dirname "$0")/../../.."
work=$(realpath -m "${WORK:-target/vm}")
cargo=${CARGO:-cargo}
limit_s=${LIMIT_S:-3600}
# Only these are loaded; each of them needs no other module.
modules="veth tun sch_netem"

missing() {
    echo "check-netem: $1" >&2
    exit 4
}

for program in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static dpkg-deb:dpkg xz:xz-utils; do
    command -v "${program%%:*}" >/dev/null ||
        missing "${program%%:*} is missing: apt-get install ${program##*:}"
done
ldd "$(command -v busybox)" >/dev/null 2>&1 &&
    missing "busybox is not static: apt-get install busybox-static"

rm -rf "$work/root" "$work/kernel"
mkdir -p "$work/root"/{bin,dev,etc,proc,sys,tmp,check,modules} "$work/kernel" "$work/download"

# The kernel, unpacked and not installed.
deb=${KERNEL_DEB:-}
if [ -z "$deb" ]; then
    package=${KERNEL_PACKAGE:-$(apt-cache depends linux-image-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)}
    [ -n "$package" ] || missing "no kernel package is known: run apt-get update, or set KERNEL_DEB"
    deb=$(find "$work/download" -name "${package}_*.deb" | head -n 1)
    if [ -z "$deb" ]; then
        (cd "$work/download" && apt-get download -q "$package")
        deb=$(find "$work/download" -name "${package}_*.deb" | head -n 1)
    fi
fi
dpkg-deb -x "$deb" "$work/kernel"
kernel=$(find "$work/kernel/boot" -name 'vmlinuz-*' | head -n 1)
order=0
for module in $modules; do
    file=$(find "$work/kernel" -name "$module.ko*" | head -n 1)
    [ -n "$file" ] || missing "$deb has no module $module"
    order=$((order + 1))
    case $file in
    *.xz) xz -dc "$file" >"$work/root/modules/$order-$module.ko" ;;
    *) cp "$file" "$work/root/modules/$order-$module.ko" ;;
    esac
done

# The tests, with the libraries that they are linked to. Built apart from all else, for any
# processor: the emulated one lacks what this one has.
built=$(CARGO_TARGET_DIR=$work/cargo RUSTFLAGS="-C target-cpu=x86-64" \
    "$cargo" test -p celslm-link --no-run 2>&1) || {
    echo "$built" >&2
    missing "the tests do not build"
}
binary() {
    path=$(echo "$built" | sed -n "s|.*Executable $1 (\(.*\))\$|\1|p")
    [ -n "$path" ] || missing "cargo named no test binary for $1"
    cp "$path" "$work/root/check/$2"
    ldd "$path" | sed -n 's|.* \(/[^ ]*\) (0x.*|\1|p;s|^\t\(/[^ ]*\) (0x.*|\1|p' | sort -u |
        while read -r library; do
            mkdir -p "$work/root$(dirname "$library")"
            cp -L "$library" "$work/root$library"
        done
}
binary 'unittests src/lib.rs' units
binary 'tests/link.rs' link

cp "$(command -v busybox)" "$work/root/bin/busybox"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$work/root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/root/etc/group"
chmod 1777 "$work/root/tmp"
printf '%s\n' "${@:-kernel_}" >"$work/root/check/filters"
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "celslm-vm: $module could not be loaded"
done
chmod 666 /dev/net/tun
echo "celslm-vm: Linux $(uname -r)"
code=0
echo "celslm-vm: what netem says it was told"
/check/units --test-threads=1 --nocapture netem || code=1
echo "celslm-vm: the backend, as root"
/check/link $(cat /check/filters) || code=1
echo "celslm-vm: the backend, as a user without rights"
su nobody -c '/check/link kernel_counts' || code=1
echo "celslm-vm: exit $code"
poweroff -f
INIT
chmod 755 "$work/root/init" "$work/root/check/"* "$work/root/bin/busybox"
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initramfs.gz"

# Time in this machine is counted in instructions, one a nanosecond, and skips ahead while the
# machine is idle: what is measured inside does not depend on how fast or how busy this host is.
log=$work/console.log
timeout --foreground "$limit_s" qemu-system-x86_64 \
    -accel tcg,thread=single -icount shift=0,sleep=off -rtc clock=vm \
    -cpu max -smp 1 -m 1024 -nodefaults -no-user-config -display none -no-reboot \
    -serial stdio -kernel "$kernel" -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable random.trust_cpu=on" \
    </dev/null | tr -d '\r' | tee "$log" || echo "check-netem: qemu was stopped" >&2
code=$(sed -n 's/^celslm-vm: exit \([0-9]*\)$/\1/p' "$log" | tail -n 1)
exit "${code:-5}"

#!/bin/busybox sh
# First process in the VM: mounts the host's root read-only with a tmpfs over it, and goes on in guest.sh there.
b=/bin/busybox
fail() {
    echo "vm: $*"
    $b poweroff -f
}
$b mkdir -p /dev /proc /lower /upper /root
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for module in /*.ko; do
    $b insmod "$module" || fail "cannot insert $module"
done
# loose: nobody writes there, so whatever has been read may be kept.
$b mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro host /lower || fail "no root"
$b mount -t tmpfs -o size=80% tmpfs /upper || fail "no tmpfs"
$b mkdir /upper/up /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /root || fail "no overlay"
for word in $($b cat /proc/cmdline); do
    case $word in hiveway.vm=*) directory=${word#*=} ;; esac
done
$b umount /proc /dev
exec $b switch_root /root /bin/sh "$directory/guest.sh" "$directory"

# Second part of the first process, with the host's programs: mounts, modules, the suite, and the machine's end.
directory=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/tmp TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# What udev makes elsewhere: nft reads rulesets from /dev/stdin.
ln -s /proc/self/fd /dev/fd
for stream in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${stream#*:}" "/dev/${stream%:*}"; done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
# An engine's layers can't lie on an overlay, and nothing of what the host has there is the guest's.
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mkdir -p /lib/modules
mount --bind "$directory/lib/modules" /lib/modules
ip link set lo up
hostname vm
# Containers' images have loops of all kinds; nobody else is on this machine.
ulimit -n 65536

sh "$directory/suite.sh"
code=$?
# What the host requires to see, and QEMU's own exit code: (code << 1) | 1.
echo "vm: the suite ended with $code"
sleep 0.2
printf "\\$(printf %o "$code")" | dd of=/dev/port bs=1 seek=244 conv=notrunc status=none
poweroff -f

# Becomes a node: what an engine and an agent find in the file system is this node's alone, and the rest the machine's.
# Runs as the first process of fresh mount, PID and UTS namespaces, in the node's network namespace.
# usage: node.sh LABEL DIRECTORY ENGINE dockerd...; ENGINE is where an engine was unpacked, or empty for the machine's own
set -eu
label=$1
directory=$2
engine=$3
shift 3

echo "$label" >/proc/sys/kernel/hostname

# A fresh /sys shows this network namespace's interfaces; the control groups are mounted below the old one.
mkdir -p "$directory/cgroup"
mount --rbind /sys/fs/cgroup "$directory/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$directory/cgroup" /sys/fs/cgroup
umount -l "$directory/cgroup"
mount -t bpf bpf /sys/fs/bpf

# The engine's programs are found where packages put them. runc stays the machine's.
if [ -n "$engine" ]; then
    mkdir -p "$directory/engine"
    mount --bind "$engine" "$directory/engine" # a path without colons and commas, which the options of an overlay end at
    for programs in /usr/bin /usr/sbin; do
        mount -t overlay overlay -o "lowerdir=$directory/engine$programs:$programs" "$programs"
    done
    umount -l "$directory/engine"
fi

# What is written there stays on the node's own disk.
private() {
    mkdir -p "$directory/disk$1/upper" "$directory/disk$1/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$directory/disk$1/upper,workdir=$directory/disk$1/work" "$1"
}
private /etc
private /opt
private /var/lib
# The engine's own layers can't lie on an overlay.
mkdir -p "$directory/docker" /var/lib/docker
mount --bind "$directory/docker" /var/lib/docker
mount -t tmpfs tmpfs /run
mkdir -p /run/lock

# Nobody answers there, but at once: without it every start of a task takes 20 s.
rm -f /etc/resolv.conf
echo "nameserver 192.168.77.1" >/etc/resolv.conf
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$label" >/etc/hosts
sysctl -qw net.ipv4.ip_forward=1

# An engine that ends is started again, as a service is; the node's end is its first process's.
exec docker-init -s -- sh -c 'while :; do "$@"; sleep 0.2; done' engine "$@"

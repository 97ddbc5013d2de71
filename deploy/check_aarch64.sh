#!/usr/bin/env bash
# Is it the same on 64-bit ARM? Installs the package from this checkout's files in an emulated aarch64 Debian, asks the
# same questions there and here, and compares the answers. By hand, as root, on an x86_64 Debian or Ubuntu; half an hour
# or more the first time. What it showed: deploy/aarch64.md.
#
#   sudo deploy/check_aarch64.sh [FOLDER]     FOLDER (default: build/aarch64) keeps what is done: run again to go on
#
# Exit code: 0 same answers, 1 other answers or failed tests, 2 something is missing here.
set -eu -o pipefail

SUITE=bookworm
MIRROR=http://deb.debian.org/debian
EPISODES=12 # of the demo: a frame and an instruction each
# What qemu emulates. To a program this one is like Orin's Cortex-A78AE: Armv8.2, fp16, dot products; no i8mm, no SVE.
export QEMU_CPU=cortex-a76
TESTS="tests/edge/test_native_motion.py tests/edge/test_native_packets.py tests/edge/test_contract.py"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$here/build/aarch64}
binfmt=/proc/sys/fs/binfmt_misc

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
missing() {
  echo "check_aarch64: $*" >&2
  exit 2
}

[ $# -le 1 ] || missing "expected one folder at most, got $# arguments"
[ "$(uname -m)" = x86_64 ] || missing "this machine is $(uname -m): expected x86_64, which ARM is compared with"
[ "$(id -u)" = 0 ] || missing "chroot needs root: sudo $0"
for need in qemu-aarch64-static:qemu-user-static debootstrap:debootstrap git:git; do
  command -v "${need%:*}" >/dev/null || missing "no ${need%:*} here: apt install ${need#*:}"
done
[ -x "$here/.venv/bin/vlar1" ] || missing "no $here/.venv/bin/vlar1 to compare with: make install"

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root=$folder/root
failed=0

# The kernel starts ARM programs in qemu. Debian's package sees to that where systemd runs; else it is done here, till the end.
[ -e $binfmt/register ] || mount -t binfmt_misc none $binfmt 2>/dev/null ||
  missing "this kernel has no binfmt_misc: modprobe binfmt_misc, or run outside the container"
if ! grep -qs 'magic 7f454c460201010000000000000000000200b700' $binfmt/*; then
  trap 'echo -1 >$binfmt/vlar1-aarch64' EXIT
  # An ELF header: 64 bit, little endian, executable or shared object, machine 0xb7. F: qemu is opened now, outside the chroot.
  printf '%s' ':vlar1-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:' \
    '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:' \
    "$(command -v qemu-aarch64-static):F" >$binfmt/register
fi

# Runs a command on the emulated machine. The mounts are seen by that command alone and end with it.
guest() {
  # shellcheck disable=SC2016
  env -i PATH=/opt/vlar1/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU=$QEMU_CPU \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    ${https_proxy:+https_proxy=$https_proxy} ${PIP_INDEX_URL:+PIP_INDEX_URL=$PIP_INDEX_URL} \
    unshare --mount --propagation private sh -euc '
      mount -t proc proc "$0/proc"
      mount -t sysfs -o ro sysfs "$0/sys"
      mount --bind "$0/etc/cpuinfo" "$0/proc/cpuinfo"
      mount --rbind /dev "$0/dev"
      exec chroot "$0" "$@"' "$root" "$@"
}

if [ ! -e "$folder/root.done" ]; then
  say "1/6  Debian $SUITE for arm64 in $root"
  rm -rf --one-file-system "$root"
  debootstrap --arch=arm64 --variant=minbase --include=g++,python3-dev,python3-venv $SUITE "$root" $MIRROR \
    >"$folder/debootstrap.log" 2>&1 || missing "debootstrap failed, see $folder/debootstrap.log"
  touch "$folder/root.done"
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# ONNX Runtime chooses its kernels by this file and /sys; of itself qemu would show the x86 processor's. It fits $QEMU_CPU.
for ((core = 0; core < $(nproc --all); core++)); do
  printf 'processor\t: %s\nBogoMIPS\t: 62.50\n' $core
  printf 'Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n'
  printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done >"$root/etc/cpuinfo"
say "1/6  $(guest uname -m), Debian $(cat "$root/etc/debian_version"), $(guest python3 --version), emulated $QEMU_CPU"

cd "$here"
files=$(git ls-files -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$files" ]; then
  say "2/6  installing from the $(git ls-files | wc -l) files of this checkout ($(git describe --always --dirty))"
  rm -rf "$root/src" "$folder/answers" "$folder/installed"
  mkdir "$root/src"
  git ls-files -z | tar --null -T - -c | tar -x --no-same-owner -C "$root/src"
  [ -e "$root/opt/vlar1/bin/pip" ] || guest python3 -m venv /opt/vlar1
  guest sh -euc 'cd /src && pip install -c constraints.txt .' >"$folder/install.log" 2>&1 ||
    { tail -5 "$folder/install.log"; exit 1; }
  echo "$files" >"$folder/installed"
fi
say "2/6  installed: $(guest vlar1 --version)"

say "3/6  vlar1 doctor there, given 30 times the time it gives a machine"
guest python -c '
import subprocess, sys, threading
from edge import cli
run, join = subprocess.run, threading.Thread.join
subprocess.run = lambda *args, timeout=None, **more: run(*args, timeout=timeout and 30 * timeout, **more)
threading.Thread.join = lambda thread, timeout=None: join(thread, timeout and 30 * timeout)
sys.exit(cli.main(["doctor"]))' >"$folder/doctor.txt" 2>&1 || failed=1
tail -1 "$folder/doctor.txt"

if [ ! -e "$folder/demo.done" ]; then
  say "4/6  $EPISODES episodes of the demo here, for their frames and instructions"
  .venv/bin/vlar1 demo --episodes $EPISODES --seed 7 --out "$folder/demo" >"$folder/demo.log" 2>&1 ||
    { tail -3 "$folder/demo.log"; exit 1; }
  touch "$folder/demo.done"
fi

.venv/bin/python -c 'import json, sys; [print(e["instruction"]) for e in json.load(sys.stdin)["episodes_detail"]]' \
  <"$folder/demo/report.json" >"$folder/instructions.txt"
rm -rf "$root/frames"
cp -r "$folder/demo/frames" "$root/frames"

# Asks for both tasks on every frame; answers go to folder $1, frames lie in $2, the rest is how to call `vlar1`.
ask_all() {
  local out=$folder/answers/$1 frames=$2 n=0 instruction task answer
  shift 2
  mkdir -p "$out"
  while read -r instruction; do
    n=$((n + 1))
    for task in affordance trajectory; do
      answer=$(printf '%s/%02d-%s.json' "$out" $n $task)
      [ -s "$answer" ] && continue
      "$@" ask --image "$(printf '%s/%02d.png' "$frames" $n)" --task $task --json "$instruction" \
        >"$answer.part" </dev/null
      mv "$answer.part" "$answer"
    done
  done <"$folder/instructions.txt"
}
say "5/6  vlar1 ask here, twice for each of $EPISODES frames"
ask_all x86_64 "$folder/demo/frames" .venv/bin/vlar1
say "5/6  and there"
ask_all aarch64 /frames guest vlar1

hash_patches='
import hashlib, sys
from pathlib import Path
from edge.ask import read_image
from edge.preprocess import preprocess
for frame in sorted(Path(sys.argv[1]).glob("*.png")):
    print(frame.name, hashlib.sha256(preprocess(read_image(frame), 224, 168).tobytes()).hexdigest())'
.venv/bin/python -I -c "$hash_patches" "$folder/demo/frames" >"$folder/answers/x86_64/patches.txt"
guest python -I -c "$hash_patches" /frames >"$folder/answers/aarch64/patches.txt"

.venv/bin/python deploy/same_answers.py "$folder/answers/x86_64" "$folder/answers/aarch64" || failed=1

say "6/6  tests there: $TESTS"
guest pip install -q -c /src/constraints.txt pytest hypothesis
# shellcheck disable=SC2086
guest sh -euc 'cd /src && exec pytest -q --hypothesis-profile=ci -p no:cacheprovider "$@"' - $TESTS || failed=1
if [ $failed = 0 ]; then say "the same there as here"; else say "not the same: see above"; fi
exit $failed

#!/usr/bin/env bash
# The tests of the core for aarch64, so that NEON runs on an x86-64 machine: user-mode emulation in a small Debian root.
#
#   tools/aarch64.sh [arguments of cargo test]
#
# Needs Debian and root. The first run makes the root (minutes, about a gigabyte), later ones reuse it. Its Rust is the
# distribution's own and newer than the one that the project asks for: bytes are tested here, not lints.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/quantize-aarch64"
root="$cache/root"
log="$cache/log"
target=aarch64-unknown-linux-gnu
mkdir -p "$cache"
exec 9>"$cache/lock" # two runs would overwrite each other's sources
flock 9

# The mirror that this machine has Debian itself from.
mirror() {
  apt-get download --print-uris base-files | sed -n "s#^'\(.*\)/pool/.*#\1#p"
}

make_root() {
  rm -rf "$root"
  apt-get update -q
  apt-get install -y -q debootstrap
  debootstrap --variant=minbase --include=ca-certificates sid "$root" "$(mirror)"
  # A mirror that lags behind is good enough.
  echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/99valid"
  chroot "$root" dpkg --add-architecture arm64
  chroot "$root" apt-get update -q
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -q --no-install-recommends \
    rustc cargo gcc libc6-dev libstd-rust-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
  touch "$root/.ready"
}

# The working tree as git sees it, new files included, and the crates of Cargo.lock beside it: the root fetches nothing.
copy_sources() {
  mkdir -p "$root/build"
  find "$root/build" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
  git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -cf - -T - 2>/dev/null | tar -xf - -C "$root/build"
  mkdir -p "$root/build/.cargo"
  cargo vendor --locked --quiet "$root/build/vendor" >/dev/null
  cat >"$root/build/.cargo/config.toml" <<'TOML'
[source.crates-io]
replace-with = "vendored"

[source.vendored]
directory = "/build/vendor"
TOML
}

if [ ! -e "$root/.ready" ]; then
  echo "making a Debian root with an aarch64 toolchain in $root" >&2
  exec 3>&2
  trap 'tail -n 5 "$log" >&3' EXIT
  make_root >"$log" 2>&1
  trap - EXIT
fi
copy_sources
# Emulation is slow: fewer random cases, the same tests.
chroot "$root" env -C /build CARGO_HOME=/build/.cargo-home PROPTEST_CASES="${PROPTEST_CASES:-16}" \
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu' \
  cargo test --offline --target "$target" "$@"

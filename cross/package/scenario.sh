# What cross/package-test.sh runs in a Debian root file system: the life of a package on a box. With systemd, if it runs here.
# shellcheck shell=bash
set -euo pipefail
cd /packages
arch=$(dpkg --print-architecture)
export DEBIAN_FRONTEND=noninteractive

step() { printf '%s\n' "-- $*"; }
fail() {
    printf 'FAILED: %s\n' "$*"
    if has_systemd; then journalctl --no-pager -n 20 -u weir-edge; else cat /tmp/log; fi
    exit 1
}
has_systemd() { [ -d /run/systemd/system ]; }
# expect WORDS ACTUAL WANTED
expect() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }
# eventually WORDS COMMAND...: within half a minute, more under emulation.
eventually() {
    local words=$1 try
    shift
    for try in $(seq 300); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    fail "waited in vain: $words"
}
answers() { exec 3<>/dev/tcp/127.0.0.1/9180 && printf 'GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3 && grep -q 'ok:' <&3; }

# Without systemd the program is started as the unit says, by hand.
begin() {
    ! has_systemd || return 0
    setpriv --reuid weir --regid weir --clear-groups /usr/bin/weir-edge run --config /etc/weir/edge.toml 2>/tmp/log &
    program=$!
}
end() {
    ! has_systemd || return 0
    kill -TERM "$program"
    wait "$program" || fail "the program ends with status $?"
}

step "install"
dpkg -i "weir-edge_0.1.0_$arch.deb" >/dev/null 2>&1 || dpkg -i "weir-edge_0.1.0_$arch.deb"
expect "the owner of /etc/weir" "$(stat -c '%U:%G %a' /etc/weir)" "root:weir 750"
has_systemd || install -d -o weir -g weir /var/lib/weir
begin
eventually "the box answers" answers
if has_systemd; then
    expect "the unit" "$(systemctl is-active weir-edge) $(systemctl is-enabled weir-edge)" "active enabled"
    main=$(systemctl show -P MainPID weir-edge)
    expect "the program's user" "$(stat -c %U "/proc/$main")" weir
    expect "its capabilities" "$(sed -n 's/^CapBnd:\t//p' "/proc/$main/status")" 0000000000000400
    expect "that it gains no more" "$(sed -n 's/^NoNewPrivs:\t//p' "/proc/$main/status")" 1
    expect "the watchdog" "$(systemctl show -P WatchdogUSec weir-edge)" 30s
    ! nsenter -t "$main" -m touch /usr/bin/x 2>/dev/null || fail "the system is not read-only for it"
    systemd-analyze security --no-pager weir-edge.service | tail -n 1 || true
    step "killed, it comes back"
    kill -KILL "$main"
    restarted() { [ "$(systemctl show -P MainPID weir-edge)" != "$main" ] && answers; }
    eventually "it is started again" restarted
    step "hung, it comes back"
    main=$(systemctl show -P MainPID weir-edge)
    systemctl set-property --runtime weir-edge.service MemoryMax=256M >/dev/null 2>&1 || true
    kill -STOP "$main"
    eventually "the watchdog notices" restarted
fi
expect "the buffer's owner" "$(stat -c %U /var/lib/weir/buffer.redb)" weir

step "upgrade, with a configuration that was changed"
end
echo '# a change of the operator' >>/etc/weir/edge.toml
echo 'what an outage left' >/var/lib/weir/kept
dpkg -i "weir-edge_0.1.1_$arch.deb" >/dev/null
expect "the version" "$(dpkg-query -W -f '${Version}' weir-edge)" 0.1.1
tail -n 1 /etc/weir/edge.toml | grep -q 'a change of the operator' || fail "the configuration was not kept"
begin
eventually "the box answers" answers

step "remove: the program goes, data and configuration stay"
end
dpkg -r weir-edge >/dev/null
! answers 2>/dev/null || fail "it still runs"
[ ! -e /usr/bin/weir-edge ] || fail "the program is still there"
expect "the data" "$(cat /var/lib/weir/kept)" "what an outage left"
[ -e /var/lib/weir/buffer.redb ] && [ -e /etc/weir/edge.toml ] || fail "buffer or configuration are gone"

step "install again: it goes on with both"
dpkg -i "weir-edge_0.1.1_$arch.deb" >/dev/null
begin
eventually "the box answers" answers
tail -n 1 /etc/weir/edge.toml | grep -q 'a change of the operator' || fail "the configuration was not kept"

step "purge: nothing is left"
end
dpkg -P weir-edge >/dev/null
for path in /usr/bin/weir-edge /etc/weir /var/lib/weir /lib/systemd/system/weir-edge.service; do
    [ ! -e $path ] || fail "$path is left"
done
! getent passwd weir >/dev/null || fail "the user is left"
step "done"

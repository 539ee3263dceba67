# Sourced after prepare.bash: puts prometheus and promtool on the PATH, from Debian's package, fetched
# and not installed, where they are not there.
prometheus=$target/prometheus
fetch_prometheus() {
    local advice fetched
    [[ ! -x $prometheus/usr/bin/promtool ]] || return 0
    advice="install prometheus with promtool (on Debian and Ubuntu the package prometheus)"
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "$advice"
    fetched=$(mktemp -d)
    chmod 755 "$fetched"
    (
        cd "$fetched"
        apt-get download -qq prometheus 2>/dev/null ||
            { apt-get update -qq && apt-get download -qq prometheus; }
    ) >/dev/null 2>&1 || { rm -rf "$fetched"; fail "it cannot be fetched: $advice"; }
    dpkg-deb -x "$fetched"/prometheus_*.deb "$prometheus"
    rm -rf "$fetched"
}
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
    mkdir -p "$prometheus"
    kept=$prometheus alone fetch_prometheus
    export PATH=$prometheus/usr/bin:$PATH
fi

# shellcheck shell=sh
# The proxy setting, for what people start in a login shell: root and the administrator may read it (daemon/parts/proxy).
if [ -r /run/mixos/proxy.env ]; then
    while read -r setting; do
        # shellcheck disable=SC2163  # a line is NAME=value
        export "$setting"
    done </run/mixos/proxy.env
    unset setting
fi

. /in/toolchain/env.sh

tar xf /in/openssh --strip-components=1
# A different --build makes configure take target facts from the compiler alone and run nothing.
# --without-xauth: it would name the place where this host has that program, so two hosts would make two programs.
# No PAM, no zlib, no smart cards, no login records: each is attack surface that this system has no use for.
./configure --host="$TARGET" --build="$(uname -m)-build-linux-gnu" \
    --prefix=/usr --sysconfdir=/etc/ssh --libexecdir=/usr/lib/ssh \
    --with-privsep-user=sshd --with-privsep-path=/var/empty --with-pid-dir=/run --with-sandbox=seccomp_filter \
    --with-default-path=/usr/sbin:/usr/bin:/sbin:/bin --with-superuser-path=/usr/sbin:/usr/bin:/sbin:/bin \
    --with-ssl-dir=/in/openssl/usr --without-pam --without-zlib --disable-pkcs11 --without-security-key-builtin \
    --disable-lastlog --disable-utmp --disable-utmpx --disable-wtmp --disable-wtmpx --disable-pututline \
    --disable-pututxline --without-openssl-header-check --without-xauth
if ! grep -q '^#define SANDBOX_SECCOMP_FILTER 1' config.h; then
    echo "openssh: configure did not choose the seccomp sandbox" >&2
    exit 1
fi
# sftp runs inside sshd-session (Subsystem sftp internal-sftp).
make sshd sshd-session sshd-auth ssh ssh-keygen

install -D -m 755 -t /out/usr/sbin sshd
install -D -m 755 -t /out/usr/bin ssh ssh-keygen
install -D -m 755 -t /out/usr/lib/ssh sshd-session sshd-auth

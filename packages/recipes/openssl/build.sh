. /in/toolchain/env.sh

# The tarball carries the test suites of other projects: leave them packed.
tar xf /in/openssl --strip-components=1 \
    --exclude='*/cloudflare-quiche/*' --exclude='*/pkcs11-provider/*' --exclude='*/tlsfuzzer/*' \
    --exclude='*/tlslite-ng/*' --exclude='*/wycheproof/*' --exclude='*/oqs-provider/*' --exclude='*/python-ecdsa/*' \
    --exclude='*/test/recipes/*'

# Off: protocols below TLS 1.2 and DTLS; ciphers and hashes nobody should choose today; loadable code (engines,
# provider modules); and subsystems without a user on the device (QUIC, CMP, time stamping, SRP, tracing).
./Configure "$OPENSSL_TARGET" --prefix=/usr --libdir=lib --openssldir=/etc/ssl \
    shared threads enable-ec_nistp_64_gcc_128 \
    no-apps no-docs no-tests no-module no-engine no-legacy no-comp no-ssl-trace no-weak-ssl-ciphers \
    no-ssl3 no-tls1 no-tls1_1 no-dtls no-nextprotoneg no-srp no-srtp no-psk no-ct no-quic \
    no-md4 no-mdc2 no-rc2 no-rc4 no-rc5 no-idea no-seed no-bf no-cast no-des no-whirlpool no-dsa no-ec2m \
    no-aria no-camellia no-gost no-sm2 no-sm3 no-sm4 no-slh-dsa \
    no-cms no-cmp no-ts no-rfc3779
# Only the shared libraries: the default target compiles everything a second time for the static ones.
make build_generated
make libcrypto.so libssl.so

install -D -m 755 -t /out/usr/lib libcrypto.so.3 libssl.so.3
ln -s libcrypto.so.3 /out/usr/lib/libcrypto.so
ln -s libssl.so.3 /out/usr/lib/libssl.so
mkdir -p /out/usr/include
cp -R include/openssl /out/usr/include/
rm -f /out/usr/include/openssl/*.in

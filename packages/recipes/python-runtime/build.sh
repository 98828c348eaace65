site=/out/usr/lib/python3.13/site-packages
mkdir -p "$site"
for wheel in /in/py-*; do
    python3 -m zipfile -e "$wheel" "$site"
done
cd "$site"
# METADATA, licences and entry points stay: they name what is installed. RECORD would list files that are not there,
# and hashes of the ones below.
rm -f ./*.dist-info/RECORD ./*.dist-info/INSTALLER ./*.dist-info/REQUESTED
find . -depth -type d -name tests -exec rm -r {} +
rm -r ./*.data ifaddr/test_ifaddr.py
find . \( -name '*.pyi' -o -name '*.pxd' \) -exec rm {} +
# Only its binding to the library is used: not the copies of modules of newer Pythons, nor the one for other interpreters.
rm -r backports/zstd/_cffi backports/zstd/zipfile backports/zstd/tarfile.py
# Compiled copies of Python modules: three megabytes more to parse a neighbour's packets or a caller's message in C.
find zeroconf dbus_fast -name '*.so' -exec rm {} +
# Of TUF the classes of its metadata alone: how it comes here is the daemon's own.
rm -r tuf/ngclient tuf/repository
ed25519=securesystemslib/_vendor/ed25519
rm -r "$ed25519/test_data" "$ed25519/test_ed25519.py" "$ed25519/science.py"
# cryptography uses cffi's compiled half only; the other one makes bindings, for which it would need a parser of C.
rm -r cffi
find . -type d -exec chmod 755 {} +
find . -type f -exec chmod 644 {} +
find . -type f -name '*.so*' -exec chmod 755 {} +

# Wheels bring GCC's unwinder under a private name, built without BIND_NOW: they get the image's own (recipe libunwind).
for private in ./*.libs/libgcc_s-*.so.1; do
    ln -sf ../../../libgcc_s.so.1 "$private"
done

# As in the recipe cpython: valid whatever the time stamps say, one process, sorted order, fixed hash seed.
PYTHONHASHSEED=0 /in/cpython/usr/bin/python3.13 -B -m compileall -f -q -j 1 --invalidation-mode unchecked-hash \
    -s /out -p / "$site"

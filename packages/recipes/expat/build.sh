. /in/toolchain/env.sh

tar xf /in/expat --strip-components=1
# This tarball has no generated configure script, and five files need neither autoconf nor libtool.
cd expat/lib
cp /in/recipe/expat_config.h .
# Lines that hang on a feature which expat_config.h has on lose their mark; those of features that are off, the line.
sed -e '/@_EXPAT_COMMENT_ATTR_INFO@/d' -e 's/@_EXPAT_COMMENT_DTD_OR_GE@//' libexpat.map.in >libexpat.map
if grep -n @ libexpat.map; then
    echo "expat: libexpat.map.in has a placeholder that build.sh does not know" >&2
    exit 1
fi
$CC $CFLAGS -I. -fPIC -shared -fvisibility=hidden -DXML_ENABLE_VISIBILITY=1 -fno-strict-aliasing \
    -Wl,-soname,libexpat.so.1,--version-script,libexpat.map -o libexpat.so.1 \
    xmlparse.c xmltok.c xmlrole.c random_getentropy.c random_getrandom.c

install -D -m 755 libexpat.so.1 /out/usr/lib/libexpat.so.1
ln -s libexpat.so.1 /out/usr/lib/libexpat.so
install -D -m 644 -t /out/usr/include expat.h expat_external.h

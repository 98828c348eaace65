. /in/toolchain/env.sh

tar xf /in/sqlite --strip-components=1
# The tarball holds the separate sources and a small Tcl that assembles them into sqlite3.c. Both the Tcl and the parser
# generator run here and nowhere else, so they are the host compiler's job. sqlite_cfg.h is what the configure script
# would leave behind; the same settings stand on the compiler's command line below.
: >sqlite_cfg.h
make -f main.mk TOP=. B.cc="gcc -O1" PACKAGE_VERSION="$(cat VERSION)" sqlite3.c sqlite3.h
# Full-text search is for the daemon. Extensions from files are off: a data base must not bring code.
$CC $CFLAGS -fPIC -shared -Wl,-soname,libsqlite3.so.0 -o libsqlite3.so.0 sqlite3.c \
    -DSQLITE_THREADSAFE=1 \
    -DSQLITE_ENABLE_FTS5 \
    -DSQLITE_ENABLE_MATH_FUNCTIONS \
    -DSQLITE_ENABLE_COLUMN_METADATA \
    -DSQLITE_ENABLE_DBSTAT_VTAB \
    -DSQLITE_DEFAULT_WAL_SYNCHRONOUS=1 \
    -DSQLITE_LIKE_DOESNT_MATCH_BLOBS \
    -DSQLITE_TRUSTED_SCHEMA=0 \
    -DSQLITE_DQS=0 \
    -DSQLITE_USE_URI=1 \
    -DSQLITE_TEMP_STORE=2 \
    -DSQLITE_MAX_EXPR_DEPTH=1000 \
    -DSQLITE_OMIT_DEPRECATED \
    -DSQLITE_OMIT_LOAD_EXTENSION \
    -DSQLITE_OMIT_SHARED_CACHE \
    -DHAVE_FDATASYNC=1 -DHAVE_GMTIME_R=1 -DHAVE_LOCALTIME_R=1 -DHAVE_STRCHRNUL=1 -DHAVE_USLEEP=1

install -D -m 755 libsqlite3.so.0 /out/usr/lib/libsqlite3.so.0
ln -s libsqlite3.so.0 /out/usr/lib/libsqlite3.so
install -D -m 644 -t /out/usr/include sqlite3.h

/* What the distribution's libraries expect of glibc beyond the standard: its bounds-checking variants of string and
 * output functions (Linux Standard Base, "Interfaces for libc"), which musl does not have. They check here too. The
 * rest of the two C libraries' interfaces that is used agrees on this architecture. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>

#define FLAG __attribute__((unused)) int flag

static void check(int good)
{
	if (!good)
		abort();
}

void *__memcpy_chk(void *to, const void *from, size_t size, size_t room)
{
	check(size <= room);
	return memcpy(to, from, size);
}

void *__memset_chk(void *to, int byte, size_t size, size_t room)
{
	check(size <= room);
	return memset(to, byte, size);
}

char *__strcpy_chk(char *to, const char *from, size_t room)
{
	check(strlen(from) < room);
	return strcpy(to, from);
}

char *__strncpy_chk(char *to, const char *from, size_t size, size_t room)
{
	check(size <= room);
	return strncpy(to, from, size);
}

char *__strcat_chk(char *to, const char *from, size_t room)
{
	check(strlen(to) + strlen(from) < room);
	return strcat(to, from);
}

char *__strncat_chk(char *to, const char *from, size_t size, size_t room)
{
	check(strlen(to) + strnlen(from, size) < room);
	return strncat(to, from, size);
}

int __vsnprintf_chk(char *to, size_t size, FLAG, size_t room, const char *format, va_list values)
{
	check(size <= room);
	return vsnprintf(to, size, format, values);
}

int __vsprintf_chk(char *to, FLAG, size_t room, const char *format, va_list values)
{
	int length = vsnprintf(to, room, format, values);
	check(length < 0 || (size_t)length < room);
	return length;
}

int __vfprintf_chk(FILE *to, FLAG, const char *format, va_list values)
{
	return vfprintf(to, format, values);
}

int __vasprintf_chk(char **to, FLAG, const char *format, va_list values)
{
	return vasprintf(to, format, values);
}

#define VARIADIC(call)                 \
	va_list values;                \
	va_start(values, format);      \
	int length = call;             \
	va_end(values);                \
	return length

int __snprintf_chk(char *to, size_t size, FLAG, size_t room, const char *format, ...)
{
	check(size <= room);
	VARIADIC(vsnprintf(to, size, format, values));
}

int __sprintf_chk(char *to, int flag, size_t room, const char *format, ...)
{
	VARIADIC(__vsprintf_chk(to, flag, room, format, values));
}

int __fprintf_chk(FILE *to, FLAG, const char *format, ...)
{
	VARIADIC(vfprintf(to, format, values));
}

int __printf_chk(FLAG, const char *format, ...)
{
	VARIADIC(vfprintf(stdout, format, values));
}

int __asprintf_chk(char **to, FLAG, const char *format, ...)
{
	VARIADIC(vasprintf(to, format, values));
}

long __fdelt_chk(long descriptor)
{
	check(descriptor >= 0 && descriptor < FD_SETSIZE);
	return descriptor / (8 * (long)sizeof(long));
}

/* The loader of musl knows the other names that end in 64. */
int fcntl64(int descriptor, int command, ...)
{
	va_list values;
	va_start(values, command);
	long argument = va_arg(values, long);
	va_end(values);
	return fcntl(descriptor, command, argument);
}

/* GMP can print into obstacks; nothing here asks it to. */
void _obstack_newchunk(void *obstack, int size)
{
	(void)obstack, (void)size;
	abort();
}

int obstack_vprintf(void *obstack, const char *format, va_list values)
{
	(void)obstack, (void)format, (void)values;
	abort();
}

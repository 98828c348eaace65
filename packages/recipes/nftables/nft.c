/* nft(8) without its interactive mode: options, then a file, or commands as arguments, for libnftables(3).
 * SPDX-License-Identifier: MIT (it is linked with a library under GPL-2.0-only)
 */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* libnftables(3); its header is not part of the run-time package. */
struct nft_ctx;
struct nft_ctx *nft_ctx_new(unsigned flags);
void nft_ctx_free(struct nft_ctx *context);
unsigned nft_ctx_output_get_flags(struct nft_ctx *context);
void nft_ctx_output_set_flags(struct nft_ctx *context, unsigned flags);
void nft_ctx_set_dry_run(struct nft_ctx *context, bool dry);
void nft_ctx_set_optimize(struct nft_ctx *context, unsigned flags);
int nft_ctx_add_include_path(struct nft_ctx *context, const char *path);
int nft_ctx_add_var(struct nft_ctx *context, const char *definition);
int nft_run_cmd_from_buffer(struct nft_ctx *context, const char *commands);
int nft_run_cmd_from_filename(struct nft_ctx *context, const char *name);
enum {
	REVERSEDNS = 1 << 0, SERVICE = 1 << 1, STATELESS = 1 << 2, HANDLE = 1 << 3, JSON = 1 << 4, ECHO = 1 << 5,
	GUID = 1 << 6, NUMERIC_PROTO = 1 << 7, NUMERIC_PRIO = 1 << 8, NUMERIC_TIME = 1 << 10, TERSE = 1 << 11,
	NUMERIC = NUMERIC_PROTO | NUMERIC_PRIO | 1 << 9 | NUMERIC_TIME,
};
enum { OPTIMIZE = 1 };

static const struct option names[] = {
	{"file", required_argument, NULL, 'f'}, {"define", required_argument, NULL, 'D'},
	{"includepath", required_argument, NULL, 'I'}, {"check", no_argument, NULL, 'c'},
	{"optimize", no_argument, NULL, 'o'}, {"json", no_argument, NULL, 'j'},
	{"echo", no_argument, NULL, 'e'}, {"handle", no_argument, NULL, 'a'},
	{"stateless", no_argument, NULL, 's'}, {"terse", no_argument, NULL, 't'},
	{"service", no_argument, NULL, 'S'}, {"reversedns", no_argument, NULL, 'N'},
	{"guid", no_argument, NULL, 'u'}, {"numeric", no_argument, NULL, 'n'},
	{"numeric-priority", no_argument, NULL, 'y'}, {"numeric-protocol", no_argument, NULL, 'p'},
	{"numeric-time", no_argument, NULL, 'T'}, {NULL, 0, NULL, 0},
};
static const struct {
	char option;
	unsigned flag;
} outputs[] = {{'j', JSON}, {'e', ECHO}, {'a', HANDLE}, {'s', STATELESS}, {'t', TERSE}, {'S', SERVICE},
	{'N', REVERSEDNS}, {'u', GUID}, {'n', NUMERIC}, {'y', NUMERIC_PRIO}, {'p', NUMERIC_PROTO}, {'T', NUMERIC_TIME}};

static void usage(FILE *to)
{
	fputs("Usage: nft [OPTION...] -f FILE | COMMAND...\n\n"
	      "Reads or changes the kernel's packet filter; nft(8) describes the commands. FILE may be -.\n\n"
	      "  -c, --check        change nothing           -o, --optimize      merge rules\n"
	      "  -D, --define X=Y   define a variable        -I, --includepath DIR\n"
	      "  -j, --json         JSON in and out          -e, --echo          print what was added\n"
	      "  -a, --handle       print handles            -t, --terse         no elements of sets\n"
	      "  -s, --stateless    no counters              -n, --numeric       numbers instead of names\n"
	      "  -y, -p, -T         only priorities, protocols, times as numbers\n"
	      "  -N, -S, -u         names of hosts, services, users\n",
	      to);
}

static void *need(void *memory)
{
	if (memory)
		return memory;
	fputs("nft: out of memory\n", stderr);
	exit(EXIT_FAILURE);
}

/* The remaining arguments as one text. */
static char *join(char **words)
{
	size_t size = 2;
	for (char **word = words; *word; word++)
		size += strlen(*word) + 1;
	char *text = need(calloc(1, size));
	for (char **word = words; *word; word++) {
		strcat(text, *word);
		strcat(text, word[1] ? " " : "\n");
	}
	return text;
}

int main(int count, char **words)
{
	/* Before a context, which needs the kernel. */
	if (count == 2 && (!strcmp(words[1], "-v") || !strcmp(words[1], "--version")))
		return puts("nftables v" VERSION) < 0;
	if (count == 2 && (!strcmp(words[1], "-h") || !strcmp(words[1], "--help")))
		return usage(stdout), EXIT_SUCCESS;
	struct nft_ctx *context = need(nft_ctx_new(0));
	const char *file = NULL;
	unsigned flags = nft_ctx_output_get_flags(context);
	/* Options end at the first command: its words may start with a dash. */
	for (int option; (option = getopt_long(count, words, "+f:D:I:cojeastSNunypT", names, NULL)) != -1;) {
		bool good = option != '?';
		switch (option) {
		case 'f': file = optarg; break;
		case 'c': nft_ctx_set_dry_run(context, true); break;
		case 'o': nft_ctx_set_optimize(context, OPTIMIZE); break;
		case 'D': good = nft_ctx_add_var(context, optarg) == 0; break;
		case 'I': good = nft_ctx_add_include_path(context, optarg) == 0; break;
		}
		for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
			flags |= option == outputs[i].option ? outputs[i].flag : 0;
		if (!good) {
			usage(stderr);
			return EXIT_FAILURE;
		}
	}
	if (!file == !words[optind]) {
		usage(stderr);
		return EXIT_FAILURE;
	}
	nft_ctx_output_set_flags(context, flags);
	char *text = file ? NULL : join(words + optind);
	int failed = file ? nft_run_cmd_from_filename(context, file) : nft_run_cmd_from_buffer(context, text);
	free(text);
	nft_ctx_free(context);
	/* Output that did not arrive is no success. */
	return failed || fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}

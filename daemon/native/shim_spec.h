/* Part of shim.c: reading DIR/spec. A file that is not understood to its last byte is refused. */
static const char *list_key(struct spec *s, char **word, int count)
{
	long long value, hard;
	if (strcmp(word[0], "arg") == 0 && count == 2)
		s->argv[s->args++] = word[1]; /* there is room: they were counted */
	else if (strcmp(word[0], "env") == 0 && count == 2) {
		if (!strchr(word[1], '=') || s->envs == LISTS)
			return "bad environment";
		s->envp[s->envs++] = word[1];
	} else if (strcmp(word[0], "group") == 0 && count == 2) {
		if (s->groups == GROUPS || !to_number(word[1], 0, 0xfffffffeLL, &value))
			return "bad group";
		s->group[s->groups++] = (gid_t)value;
	} else if (strcmp(word[0], "limit") == 0 && count == 4) {
		int i = 0;
		while (i < LIMITS && strcmp(limits[i].name, word[1]) != 0)
			i++;
		if (i == LIMITS || s->limit[i].set)
			return "bad limit name";
		struct limit *limit = &s->limit[i];
		limit->set = true;
		value = hard = -1;
		if ((strcmp(word[2], "infinity") != 0 && !to_number(word[2], 0, INT64_MAX, &value))
		    || (strcmp(word[3], "infinity") != 0 && !to_number(word[3], 0, INT64_MAX, &hard)))
			return "bad limit";
		limit->value.rlim_cur = value < 0 ? RLIM_INFINITY : (rlim_t)value;
		limit->value.rlim_max = hard < 0 ? RLIM_INFINITY : (rlim_t)hard;
	} else
		return "unknown key or wrong number of words";
	return NULL;
}

static const char *spec_line(struct spec *s, char *line, uint64_t *seen)
{
	char *word[4];
	int count = split(line, word, 4), key = 0;
	if (count < 2)
		return "wrong number of words";
	for (int i = 0; i < count; i++)
		if (!decode(word[i]))
			return "bad character";
	for (; key < NUMBERS + TEXTS; key++)
		if (strcmp(key < NUMBERS ? numbers[key].name : texts[key - NUMBERS].name, word[0]) == 0)
			break;
	if (key == NUMBERS + TEXTS)
		return list_key(s, word, count);
	if (count != 2 || *seen >> key & 1)
		return "key given twice";
	*seen |= 1ULL << key;
	if (key < NUMBERS) {
		long long *to = (long long *)((char *)s + numbers[key].at);
		return to_number(word[1], numbers[key].low, numbers[key].high, to) ? NULL : "number out of range";
	}
	*(char **)((char *)s + texts[key - NUMBERS].at) = word[1];
	return strlen(word[1]) < MAX_PATH ? NULL : "text too long";
}

static const char *spec_parse(struct spec *s, size_t length, int *line)
{
	char *at = s->map, *end = s->map + length;
	uint64_t seen = 0;
	int args = 0;
	for (char *c = at; c && end - c > 5; c = memchr(c + 1, '\n', (size_t)(end - c - 1)))
		args += memcmp(c, "\narg ", 5) == 0;
	if (args > LISTS)
		return "too many arguments";
	s->argv = (char **)(s->map + ((length + 8) & ~7UL));
	s->envp = s->argv + args + 1;
	for (*line = 1; at < end; ++*line) {
		char *stop = memchr(at, '\n', (size_t)(end - at));
		if (!stop || memchr(at, 0, (size_t)(stop - at)))
			return "not a line of text";
		*stop = 0;
		const char *wrong = *line > 1 ? spec_line(s, at, &seen) : strcmp(at, "mixos-spec 1") != 0 ? "bad head" : NULL;
		if (wrong)
			return wrong;
		at = stop + 1;
	}
	if (!*s->unit || !s->args || s->argv[0][0] != '/' || s->cwd[0] != '/' || s->log_folder[0] != '/')
		return "unit, arg, cwd or log-folder is missing or not absolute";
	if (strpbrk(s->unit, " \n") || strpbrk(s->cgroup, " \n")) /* they go into the state as they are */
		return "unit or cgroup with a space";
	if (s->ready_fd && s->ready_fd < 3)
		return "ready-fd is a standard stream";
	if (s->notify_uid < 0)
		s->notify_uid = s->uid;
	return NULL;
}

static const char *spec_load(int *line) /* into `spec`; the old one stays when this one is wrong */
{
	struct spec s = {.unit = "", .cwd = "/", .cgroup = "", .shim_cgroup = "", .log_folder = "", .notify_uid = -1, .umask = 022, .bounding = -1,
			 .stop_signal = SIGTERM, .grace = 10000, .log_size = 1 << 20, .log_files = 4, .log_rate = 1000, .log_burst = 10000};
	struct stat about;
	int fd = open("spec", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	*line = 0;
	if (fd < 0 || fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) || about.st_size > MAX_SPEC) {
		close_fd(&fd);
		return "no file, or too large";
	}
	s.size = (size_t)about.st_size + 16 + (2 * LISTS + 8) * sizeof(char *);
	s.map = mmap(NULL, s.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const char *wrong = "no memory";
	if (s.map != MAP_FAILED) {
		ssize_t got = read(fd, s.map, (size_t)about.st_size);
		wrong = got == about.st_size ? spec_parse(&s, (size_t)got, line) : "cannot be read";
		if (!wrong && spec.map)
			munmap(spec.map, spec.size);
		if (!wrong)
			spec = s;
		else
			munmap(s.map, s.size);
	}
	close(fd);
	return wrong;
}

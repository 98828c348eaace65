/* The service that all supervisors run: says in ./told who it is and when it began (CLOCK_MONOTONIC), then waits. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	int told = open("told", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	if (told < 0 || dprintf(told, "%d %lld\n", (int)getpid(), now.tv_sec * 1000000000LL + now.tv_nsec) < 0)
		return 1;
	close(told);
	for (;;)
		pause();
}

/*
 * Copies the data of a file into a new one, as converting plain data does, to show what any program can reach:
 *
 *   gcc -O2 -pthread copy.c -o copy && ./copy MODE KIB FROM TO
 *
 * MODE is write (writes memory and reads nothing), one (one thread reads and writes), two (two threads do), pipe (one thread reads,
 * another one writes), or range (copy_file_range). KIB is the size of a piece.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PIECES = 1 << 20, BUFFERS = 4, ZERO_BYTES = 4096 };

static struct { off_t at; size_t length; } pieces[MAX_PIECES];
static int count, next, from, to;
static size_t piece_bytes;
static const char *mode;
static char *buffers[BUFFERS];
static sem_t filled, empty;
static const char zeros[ZERO_BYTES];
static volatile int zero_blocks;

static void read_piece(int i, char *buffer)
{
    if (pread(from, buffer, pieces[i].length, pieces[i].at) != (ssize_t)pieces[i].length) err(1, "pread");
    for (size_t at = 0; at + ZERO_BYTES <= pieces[i].length; at += ZERO_BYTES)
        if (buffer[at] == 0 && memcmp(buffer + at, zeros, ZERO_BYTES) == 0) zero_blocks++;
}

static void write_piece(int i, const char *buffer)
{
    if (pwrite(to, buffer, pieces[i].length, pieces[i].at) != (ssize_t)pieces[i].length) err(1, "pwrite");
}

static void copy_range(int i)
{
    loff_t in = pieces[i].at, out = pieces[i].at, end = in + pieces[i].length;
    while (in < end)
        if (copy_file_range(from, &in, to, &out, end - in, 0) <= 0) err(1, "copy_file_range");
}

/* Works through the pieces; several threads may. */
static void *copy(void *buffer)
{
    for (int i; (i = __sync_fetch_and_add(&next, 1)) < count;) {
        if (strcmp(mode, "range") == 0) {
            copy_range(i);
            continue;
        }
        if (strcmp(mode, "write") != 0) read_piece(i, buffer);
        write_piece(i, buffer);
    }
    return NULL;
}

static void *read_all(void *unused)
{
    for (int i = 0; i < count; i++) {
        sem_wait(&empty);
        read_piece(i, buffers[i % BUFFERS]);
        sem_post(&filled);
    }
    return unused;
}

static void *write_all(void *unused)
{
    for (int i = 0; i < count; i++) {
        sem_wait(&filled);
        write_piece(i, buffers[i % BUFFERS]);
        sem_post(&empty);
    }
    return unused;
}

static void find_pieces(void)
{
    for (off_t data = 0; (data = lseek(from, data, SEEK_DATA)) >= 0;) {
        off_t hole = lseek(from, data, SEEK_HOLE);
        for (; data < hole; data += pieces[count++].length) {
            if (count == MAX_PIECES) errx(1, "too many pieces");
            pieces[count].at = data;
            pieces[count].length = hole - data < (off_t)piece_bytes ? (size_t)(hole - data) : piece_bytes;
        }
    }
}

int main(int argc, char **argv)
{
    struct timespec begun, ended;
    struct stat stat;
    pthread_t threads[2];

    if (argc != 5) errx(2, "usage: copy write|one|two|pipe|range KIB FROM TO");
    clock_gettime(CLOCK_MONOTONIC, &begun);
    mode = argv[1];
    piece_bytes = strtoul(argv[2], NULL, 10) * 1024;
    from = open(argv[3], O_RDONLY);
    to = open(argv[4], O_RDWR | O_CREAT | O_EXCL, 0666);
    if (from < 0 || to < 0 || fstat(from, &stat) != 0 || ftruncate(to, stat.st_size) != 0) err(1, "open");
    find_pieces();
    for (int i = 0; i < BUFFERS; i++) {
        buffers[i] = aligned_alloc(ZERO_BYTES, piece_bytes);
        memset(buffers[i], 1, piece_bytes);
    }
    int is_pipe = strcmp(mode, "pipe") == 0;
    int has_two = is_pipe || strcmp(mode, "two") == 0;
    sem_init(&filled, 0, 0);
    sem_init(&empty, 0, BUFFERS);
    pthread_create(&threads[0], NULL, is_pipe ? read_all : copy, buffers[0]);
    if (has_two) pthread_create(&threads[1], NULL, is_pipe ? write_all : copy, buffers[1]);
    for (int i = 0; i <= has_two; i++) pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%s, %zu KiB: %.3f s\n", mode, piece_bytes / 1024,
           (double)(ended.tv_sec - begun.tv_sec) + (ended.tv_nsec - begun.tv_nsec) / 1e9);
    return 0;
}

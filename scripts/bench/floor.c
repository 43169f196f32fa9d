/*
 * The floor: the least that a FUSE server in user space can do for a read or a write on this kernel, so it measures
 * what the kernel itself costs. It has N threads, each a blocking loop of read(/dev/fuse), pread or pwrite(raw file),
 * writev(/dev/fuse). It shows one file, disk.raw. It needs root, since it calls mount(2).
 *
 *   gcc -O2 -pthread floor.c -o floor
 *   ./floor RAWFILE MOUNTPOINT THREADS      ends when it is unmounted
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ROOT = 1, DISK = 2, MAX_THREADS = 64, MAX_IO = 1 << 20, MESSAGE = MAX_IO + 4096 };

#ifndef FOPEN_PARALLEL_DIRECT_WRITES /* before Linux 6.2 */
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

static const char NAME[] = "disk.raw";
static int source;
static off_t source_bytes;

static void reply(int fd, uint64_t unique, int error, const void *body, size_t bytes) {
  struct fuse_out_header header = {.len = sizeof header + bytes, .error = error, .unique = unique};
  struct iovec parts[2] = {{&header, sizeof header}, {(void *)body, bytes}};
  /* ENOENT: the request was interrupted meanwhile and nobody waits for the answer. */
  if (writev(fd, parts, bytes ? 2 : 1) < 0 && errno != ENOENT) perror("floor: writev");
}

static void fill_attr(struct fuse_attr *attr, uint64_t node) {
  memset(attr, 0, sizeof *attr);
  attr->ino = node;
  attr->nlink = 1;
  attr->blksize = 4096;
  attr->mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0644;
  attr->size = node == ROOT ? 0 : source_bytes;
}

static void init(int fd, uint64_t unique, const struct fuse_init_in *in) {
  struct fuse_init_out out = {
      .major = FUSE_KERNEL_VERSION,
      .minor = 31,
      .max_readahead = in->max_readahead,
      .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_ASYNC_DIO |
               FUSE_PARALLEL_DIROPS,
      .max_background = 64,
      .congestion_threshold = 64,
      .max_write = MAX_IO,
      .time_gran = 1,
      .max_pages = MAX_IO / 4096,
  };
  reply(fd, unique, 0, &out, sizeof out);
}

static void lookup(int fd, uint64_t unique, const char *name) {
  if (strcmp(name, NAME) != 0) {
    reply(fd, unique, -ENOENT, NULL, 0);
    return;
  }
  struct fuse_entry_out out = {.nodeid = DISK, .entry_valid = 100, .attr_valid = 100};
  fill_attr(&out.attr, DISK);
  reply(fd, unique, 0, &out, sizeof out);
}

static void getattr(int fd, uint64_t unique, uint64_t node) {
  struct fuse_attr_out out = {.attr_valid = 100};
  fill_attr(&out.attr, node);
  reply(fd, unique, 0, &out, sizeof out);
}

static void answer(int fd, char *message, char *data) {
  struct fuse_in_header *in = (void *)message;
  void *body = message + sizeof *in;
  switch (in->opcode) {
  case FUSE_INIT: init(fd, in->unique, body); break;
  case FUSE_LOOKUP: lookup(fd, in->unique, body); break;
  case FUSE_GETATTR: getattr(fd, in->unique, in->nodeid); break;
  case FUSE_OPEN:
  case FUSE_OPENDIR: {
    struct fuse_open_out out = {.fh = 1,
                                .open_flags = FOPEN_KEEP_CACHE | FOPEN_PARALLEL_DIRECT_WRITES};
    reply(fd, in->unique, 0, &out, sizeof out);
    break;
  }
  case FUSE_READ: {
    struct fuse_read_in *args = body;
    ssize_t got = pread(source, data, args->size, args->offset);
    reply(fd, in->unique, got < 0 ? -errno : 0, data, got < 0 ? 0 : got);
    break;
  }
  case FUSE_WRITE: {
    struct fuse_write_in *args = body;
    ssize_t put = pwrite(source, args + 1, args->size, args->offset);
    struct fuse_write_out out = {.size = put};
    reply(fd, in->unique, put < 0 ? -errno : 0, &out, put < 0 ? 0 : sizeof out);
    break;
  }
  case FUSE_FSYNC: reply(fd, in->unique, fdatasync(source) < 0 ? -errno : 0, NULL, 0); break;
  case FUSE_FALLOCATE: {
    struct fuse_fallocate_in *args = body;
    int failed = fallocate(source, args->mode, args->offset, args->length) < 0;
    reply(fd, in->unique, failed ? -errno : 0, NULL, 0);
    break;
  }
  case FUSE_RELEASE:
  case FUSE_RELEASEDIR:
  case FUSE_FLUSH: reply(fd, in->unique, 0, NULL, 0); break;
  case FUSE_FORGET:
  case FUSE_BATCH_FORGET:
  case FUSE_INTERRUPT: break; /* the kernel expects no answer to these */
  default: reply(fd, in->unique, -ENOSYS, NULL, 0);
  }
}

static void *serve(void *arg) {
  int fd = *(int *)arg;
  char *message = malloc(MESSAGE), *data = malloc(MAX_IO);
  if (!message || !data) return NULL;
  for (;;) {
    if (read(fd, message, MESSAGE) >= 0)
      answer(fd, message, data);
    else if (errno != ENOENT && errno != EINTR && errno != EAGAIN)
      return NULL; /* ENODEV: unmounted */
  }
}

static void die(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: floor RAWFILE MOUNTPOINT THREADS\n");
    return 2;
  }
  int threads = atoi(argv[3]);
  if (threads < 1 || threads > MAX_THREADS) threads = 2;

  struct stat status;
  if ((source = open(argv[1], O_RDWR)) < 0 || fstat(source, &status) < 0) die(argv[1]);
  source_bytes = status.st_size;

  int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (device < 0) die("/dev/fuse");
  char options[160];
  snprintf(options, sizeof options,
           "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%d", device, MAX_IO);
  if (mount("floor", argv[2], "fuse.floor", MS_NOSUID | MS_NODEV, options) < 0) die(argv[2]);

  pthread_t thread[MAX_THREADS];
  static int fds[MAX_THREADS];
  for (int i = 0; i < threads; i++) {
    /* With its own descriptor, no thread waits in the queue of the others' answers. */
    uint32_t master = device;
    fds[i] = i == 0 ? device : open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (i > 0 && (fds[i] < 0 || ioctl(fds[i], FUSE_DEV_IOC_CLONE, &master) < 0)) fds[i] = device;
    if (pthread_create(&thread[i], NULL, serve, &fds[i]) != 0) die("pthread_create");
  }
  for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
  return 0;
}

/** The options and the help of `vimgfs mount`. */
import type { CommandHelp, Options, Rows } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

/** The options that -o takes, by name; names with one meaning stand in one row. */
export const MOUNT_OPTIONS: Rows = [
  ['ro', 'read only; do not open IMAGE for writing'],
  [
    'rw',
    `read and write, or fail; without ro and rw, a write-protected image is mounted read-only`,
  ],
  [
    'force-share',
    `with ro: mount also while others write IMAGE. Snapshots read as at rest, and come and go;
      disk.raw may be torn`,
  ],
  [
    'partitions',
    `show the partitions of each disk as files, too: disk.p1.raw, disk@SNAPSHOT.p1.raw, and a list
      in .vimgfs/partitions.json`,
  ],
  [
    'manage',
    `touch disk@TAG.raw takes a snapshot, mv renames one, rm deletes one; for the mount's owner and
      root`,
  ],
  [
    'scratch',
    `programs can write the disk and every snapshot; IMAGE stays as it is, and what is written is
      gone after unmounting`,
  ],
  [
    'scratch=FILE',
    `the same, but FILE, a qcow2 overlay on IMAGE, keeps what is written to disk.raw, for the next
      mount, vimgfs commit or QEMU`,
  ],
  ['scratch-dir=DIR', "where what is written goes (a file without a name in IMAGE's folder)"],
  ['scratch-size=SIZE', 'how much may be written in all, such as 20G'],
  ['growable', 'truncate -s, or writing past the end, makes the disk larger'],
  [
    'passthrough=on|off|auto',
    `off: the kernel never reads files itself; on: it also reads those of a read-only IMAGE that
      another program could change (auto)`,
  ],
  [
    'materialize=SIZE',
    `on xfs and btrfs the kernel reads a read-only IMAGE by reflinks; up to SIZE of compressed and
      encrypted data are written out for it (0)`,
  ],
  [
    'writeback',
    `the kernel keeps what programs write and sends it later, in large pieces; errors come at fsync
      and close`,
  ],
  ['commit=SECONDS', 'how often to make durable what was written (5); 0: only when asked to'],
  ['allow_root', 'root may use the mount, too (a loop mount needs this, for example)'],
  [
    'allow_other',
    `every user may use it, as far as the files' modes allow; for ordinary users both need
      user_allow_other in /etc/fuse.conf`,
  ],
  ['default_permissions', 'the kernel checks modes (it always does with the two above)'],
  ['uid=N, gid=N', 'who owns the files (the user who mounts)'],
  [
    'umask=OCTAL',
    `the files' modes (the bits that all files of IMAGE have in common; only disk.raw has write bits,
      and with scratch the snapshots)`,
  ],
  ['sync, noexec, noatime, lazytime, …', 'as for other file systems (mount(8))'],
  ['suid, dev', 'for root; otherwise nosuid and nodev hold'],
  ['fsname=NAME', 'what mount lists as the source (the path of IMAGE)'],
]

export const OPTIONS = {
  option: {
    type: 'string',
    short: 'o',
    multiple: true,
    value: 'OPTION,…',
    help: 'mount options:',
  },
  foreground: {
    type: 'boolean',
    short: 'f',
    help: 'stay in front and log to standard error',
  },
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'print errors only',
  },
  'read-only': {
    type: 'boolean',
    short: 'r',
    help: 'the same as -o ro',
  },
  'read-write': {
    type: 'boolean',
    short: 'w',
    help: 'the same as -o rw',
  },
  format: {
    type: 'string',
    value: 'F',
    help: `{formats} (found by its bytes); raw also shows and writes a file that does not look like a
      disk`,
  },
  threads: {
    type: 'string',
    value: 'N',
    help: `the most threads that serve requests (2, up to 4 with more processors); one serves until
      requests have to wait`,
  },
  transport: {
    type: 'string',
    value: 'KIND',
    choices: ['direct', 'libfuse'],
    help: `how requests come: direct (the kernel's protocol; the default) or libfuse (through the
      package fuse-native, if that is installed; slower)`,
  },
  'metadata-cache': {
    type: 'string',
    value: 'SIZE',
    help: `how much of the tables to keep in memory, for all threads together (all tables that the disk
      can have, for each thread, but 48M at most)`,
  },
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    help: 'IMAGE may also name backing files, data files and extents below DIR (its own folder)',
  },
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since it was made',
  },
  'drop-change-tracking': {
    type: 'boolean',
    help: 'write a vmdk whose changes are tracked for backups; the tracking ends',
  },
  force: {
    type: 'boolean',
    help: `write an image that another image in its folder, or a snapshot, needs; that breaks the other
      one`,
  },
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: `the file with the passphrase of an encrypted image; a newline at its end does not count; - is standard input. Give it again for the next encrypted layer below; the
      last one is for all that follow. Without it, vimgfs reads the file that
      VIMGFS_PASSPHRASE_FILE names, or asks the terminal.`,
  },
  'max-chain': {
    type: 'string',
    value: 'N',
    help: 'the most layers that a chain may have (200)',
  },
  'log-level': {
    type: 'string',
    value: 'LEVEL',
    choices: ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    help: '{choices} (info)',
  },
  'log-file': {
    type: 'string',
    value: 'FILE',
    help: 'log to FILE (syslog, or a file that the line after mounting names)',
  },
  prefetch: {
    type: 'boolean',
    help: 'of an image on a server: fetch all of it into the cache in the background',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE MOUNTPOINT'],
  words: 'IMAGE MOUNTPOINT',
  offers: { MOUNTPOINT: 'folders' },
  summary: 'show the disk and snapshots of an image as files',
  text: [
    'Shows the disk image IMAGE ({readable}) in the folder MOUNTPOINT:',
    [
      [
        'disk.raw',
        `the disk, with its virtual size; holes stay holes. What a program writes to it is in IMAGE
          after fsync, or after a few seconds.`,
      ],
      ['disk@SNAPSHOT.raw', 'each snapshot, with its date; read-only, as all files below'],
      ['disk@SNAPSHOT.vmstate', 'the memory that was saved with it, if any'],
      ['disk@BACKING.raw', 'each backing file of its chain'],
      ['disk@BACKING@SNAPSHOT.raw', 'each snapshot inside a backing file'],
      ['.vimgfs/', 'not listed, opened by name: stats.json, status.json'],
    ],
    `The server goes to the background once the mount answers. SIGINT and SIGTERM unmount it; so
      does SIGHUP to a server in front. SIGUSR1 switches the log to the next more detailed level,
      and back. SIGUSR2, and SIGHUP to a server in the background, open the log's file again.`,
    `A disk in an uncompressed tar archive is read in place: machine.ova, or by name
      machine.ova::disk1.vmdk.`,
    `IMAGE may be an address: https://HOST/disk.qcow2 (http://, too) is read by ranges and kept in
      a cache; nbd://HOST/EXPORT and nbd+unix:///EXPORT?socket=PATH are read and written.`,
    `IMAGE is locked as QEMU does it: vimgfs refuses an image that a running machine has open,
      and QEMU refuses one that vimgfs has mounted. If you have just unmounted IMAGE, vimgfs waits
      until the old server has saved what was written.`,
  ],
  options: OPTIONS,
  suboptions: { option: MOUNT_OPTIONS },
  notes: [
    `Each of these options also has a spelling for -o, and so for fstab and mount -t vimgfs:
      threads=4 for --threads 4, force for --force. A comma in a value is \\,. Options that
      only mount(8) and systemd heed (nofail, user, _netdev, x-systemd.automount) may stand there,
      too.`,
    `Root can use an ordinary user's mount (mount -o loop, for example) only with allow_root or
      allow_other; otherwise the kernel refuses it.`,
    `In the example, noload leaves an ext journal alone: it cannot be replayed in a read-only file. For xfs say
      norecovery,nouuid, for btrfs rescue=nologreplay.`,
  ],
  exit: '0 mounted, 1 could not be mounted, 2 wrong usage, 3 you have mounted IMAGE already (the line says where)',
  examples: [
    'vimgfs mount -o ro disk.qcow2 /mnt/x',
    'mount -o loop,ro,noload,offset=1048576 /mnt/x/disk@before-upgrade.raw /mnt/old',
  ],
}

/** `vimgfs help`: what each command does, with an example. */
import { UsageError } from '../errors.js'
import { VERSION } from '../version.js'
import { print } from './output.js'

export function overview(): string {
  return `vimgfs ${VERSION}: shows virtual disk images as raw files to read and write, and their snapshots too

Usage: vimgfs COMMAND [OPTION…] ARGUMENT…

  mount IMAGE MOUNTPOINT   show IMAGE's disk and snapshots as files in the folder MOUNTPOINT
  umount MOUNTPOINT        unmount it, and return when its server has ended
  check IMAGE              looks for leaks and damage in its tables, and repairs them
  info IMAGE               what IMAGE is: format, sizes, snapshots, backing files
  help COMMAND             all options of a command, with an example

  --help, --version

Example: vimgfs mount disk.qcow2 /mnt/x && ls -l /mnt/x && vimgfs umount /mnt/x
`
}

const HELP: Record<string, string> = {
  mount: `Usage: vimgfs mount [OPTION…] IMAGE MOUNTPOINT

Shows the disk image IMAGE ({readable}) in the folder MOUNTPOINT:

  disk.raw               the disk, with its virtual size; holes are holes. What is written to it is
                         in IMAGE, at the latest after fsync or a few seconds.
  disk@SNAPSHOT.raw      each snapshot, with its date; read-only, as are those below
  disk@SNAPSHOT.vmstate  the memory that was saved with it, if any
  disk@BACKING.raw       each backing file of its chain
  disk@BACKING@SNAPSHOT.raw  each snapshot inside those
  .vimgfs/               found by name: stats.json, status.json

The server goes to the background once the mount answers. SIGINT and SIGTERM unmount it, and SIGHUP
does in front. SIGUSR1 switches the log to the next more detailed level, and back. SIGUSR2 opens
the log's file again, and so does SIGHUP in the background.

IMAGE is locked as QEMU does it: what a running machine has open is refused, and the other way
round. A server of yours that was unmounted and still saves what was written is waited for.

  -o OPTION[,OPTION…]    mount options:
       ro                  read only; IMAGE is not opened for writing
       rw                  read and write or fail; without ro and rw a write-protected image is
                           mounted read-only
       force-share         with ro: also while others write IMAGE; what is read may be torn
       growable            truncate -s, or writing past the end, makes the disk larger
       commit=SECONDS      how often what was written is made durable (5); 0 only when asked to
       allow_root          root may use the mount too (a loop mount needs that, say)
       allow_other         every user may, as far as the files' modes let them;
                           for ordinary users both need user_allow_other in /etc/fuse.conf
       default_permissions the kernel checks modes (it always does with the two above)
       uid=N, gid=N        who owns the files (the mounting user)
       umask=OCTAL         the files' modes (those that all its files have in common;
                           write bits for disk.raw only)
       sync, noexec, noatime, lazytime, … as for other file systems (mount(8))
       suid, dev           for root; otherwise nosuid and nodev hold
       fsname=NAME         what mount lists as the source (the path of IMAGE)
  -f, --foreground       stay in front and log to standard error
  -q, --quiet            say nothing but errors
  --format F             {formats} (found by the first bytes); raw also shows
                         and writes what does not look like a disk
  --threads N            threads that serve requests (2, up to 4 with more processors)
  --transport KIND       how requests come: direct (the kernel's protocol; the rule), or libfuse
                         (by the package fuse-native, where that is installed; slower)
  --metadata-cache SIZE  tables to keep in memory, of all threads together
                         (all that the disk can have, for each thread, but 48M at most)
  --allow-path DIR       IMAGE may name backing files, data files and extents below DIR too (its own
                         folder)
  --ignore-cid           read a vmdk whose parent has been changed since it was made
  --drop-change-tracking write a vmdk whose changes are tracked for backups; they are not any more
  --force                write an image that another image in its folder, or a snapshot, stands
                         on; that breaks the other one
  --passphrase-file FILE the passphrase of an encrypted image, without the line's end if it has one;
                         - is standard input. Given again it is for the next encrypted layer
                         below; the last is for all that follow. Without it the file that
                         VIMGFS_PASSPHRASE_FILE names is read, or the terminal is asked.
  --max-chain N          backing files at most (200)
  --log-level LEVEL      trace, debug, info, warn, error, fatal, silent (info)
  --log-file FILE        log there (syslog, or a file that the hint after mounting names)

Exit code: 0 it is mounted, 1 it could not be mounted, 2 wrong usage, 3 you have mounted IMAGE
already (the line says where).

What root does with an ordinary user's mount, such as mount -o loop, needs allow_root or
allow_other; the kernel refuses it otherwise.

Example:
  vimgfs mount -o ro disk.qcow2 /mnt/x
  mount -o loop,ro,noload,offset=1048576 /mnt/x/disk@before-upgrade.raw /mnt/old

noload leaves an ext journal alone, which a read-only file could not replay; xfs wants
norecovery,nouuid, and btrfs rescue=nologreplay.
`,
  umount: `Usage: vimgfs umount [--lazy] MOUNTPOINT

Unmounts MOUNTPOINT and returns when its server has ended and all that was written is in the image.
It also removes a mount whose server was killed. It fails, and MOUNTPOINT stays mounted, if the
server does not answer, or if another mount namespace (of a container or a virtual machine, say)
has the mount, too; the line names the process.

  -l, --lazy             take it away at once, also while it is in use, and do not wait: its server
                         saves what was written when it ends, and only its log tells if that failed

Example:
  vimgfs umount /mnt/x
`,
  check: `Usage: vimgfs check [OPTION…] IMAGE

Looks whether the tables of IMAGE ({checkable}) are sound: what is used is counted, and
nothing is used twice. Of a vmdk all extents are looked at, and its parents not.

  --output=human|json    for people (the default) or for programs, with the fields of qemu-img check
  --repair=leaks|all     gives back what nothing uses, or mends the rest, too; nobody else may have
                         IMAGE open, and a copy of it is a good thing to have. No byte of the
                         disk or of a snapshot reads differently afterwards: what cannot be
                         known is left. Snapshots whose tables are lost are dropped; what they
                         may own is kept until --repair=leaks. Of a vmdk only sparse extents
                         that are not compressed are repaired, and seSparse ones are not.
  --format F             {formats} (found by the first bytes)
  --allow-path DIR       a vmdk may name extents below DIR too (its own folder)

Exit code: 0 it is sound, 1 it could not be checked, 2 it is damaged, 3 space is lost and nothing
else, 63 its format has nothing to check.

Example:
  vimgfs check disk.qcow2
  vimgfs check --repair all disk.qcow2
`,
  info: `Usage: vimgfs info [OPTION…] IMAGE

Says what IMAGE is, with the fields and numbers of qemu-img info.

  --output=human|json    for people (the default) or for programs
  --backing-chain        all layers down to the last backing file
  --format F             {formats} (found by the first bytes)
  --allow-path DIR       IMAGE may name files below DIR too (its own folder)

Example:
  vimgfs info --output=json disk.qcow2
`,
  help: `Usage: vimgfs help [COMMAND]

Example:
  vimgfs help mount
`,
}

export async function run([command, more]: string[]): Promise<number> {
  if (more !== undefined) throw new UsageError(`"${more}" is one argument too many`)
  const text =
    command === undefined ? overview() : Object.hasOwn(HELP, command) ? HELP[command] : undefined
  if (text === undefined)
    throw new UsageError(`there is no command "${command}"; vimgfs --help lists them`)
  print(await withFormats(text))
  return 0
}

/** Fills in the names of formats, which the registry knows. */
async function withFormats(text: string): Promise<string> {
  if (!text.includes('{')) return text
  const { CHECKABLE_NAMES, FORMAT_NAMES, listed } = await import('../formats/registry.js')
  return text
    .replaceAll('{formats}', listed(FORMAT_NAMES, 'or'))
    .replaceAll('{readable}', FORMAT_NAMES.join(', '))
    .replaceAll('{checkable}', CHECKABLE_NAMES.join(', '))
}

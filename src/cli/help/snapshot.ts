/** The help of `vimgfs snapshot`. */
export const HELP = `Usage: vimgfs snapshot list   [OPTION…] IMAGE
       vimgfs snapshot create [OPTION…] IMAGE TAG
       vimgfs snapshot delete [OPTION…] IMAGE TAG…
       vimgfs snapshot rename [OPTION…] IMAGE TAG NEW
       vimgfs snapshot revert [OPTION…] IMAGE TAG

Lists, takes and deletes the snapshots within a qcow2 image, and makes its disk what one of them is.
IMAGE may be mounted: then its mount point names it, too, and the mount goes on meanwhile. After a
power cut, a full disk or an error, IMAGE is as it was before or as it is after, nothing in between.

A snapshot of a vmdk is a child disk: create makes disk-TAG.vmdk beside disk.vmdk. From then on, use
the child: it holds what is written, and disk.vmdk stays as it is. VMware does not list the snapshot.
vimgfs commit disk-TAG.vmdk merges it back; to go back, delete the child.

list shows the table of qemu-img. It also shows the snapshots of a vmdk's machine (.vmsd), and the
files that they have frozen.

create takes all that was written before to a mount. What file systems mounted on its disk still hold
in memory is in the snapshot with --freeze only; without, they are there as after a power cut. It
refuses a TAG that exists. delete, rename and revert refuse one that exists twice: then name it by ID.

revert first takes the snapshot before-revert-DATE of the present state, unless a snapshot shows that
state already. Delete it when you no longer need it. It refuses an image with persistent bitmaps.

  -l IMAGE               the same as list; so is IMAGE alone
  -c, -d, -a TAG IMAGE   the same as create, delete and revert
  --freeze               create: meanwhile freeze the file systems on a mounted disk; for root
  --replace              create: delete the snapshots of the same TAG afterwards
  --wait                 delete: wait until nobody has the snapshot's file in a mount open
  --id N                 instead of TAG: the snapshot with the ID N; delete takes several
  --older-than AGE       delete: all that are older than AGE, such as 12h, 30d or 8w
  --dry-run              delete: only say what would be deleted
  --discard              revert: do not keep the present state
  --force                revert: also if another image in its folder needs IMAGE, which breaks that
  --layers               list: also the layers that IMAGE stands on, and their snapshots
  --output=human|json    list: for people (the default) or for programs, with all layers
  -f, --format F         {formats} (found by its bytes)
  --allow-path DIR       list, create: IMAGE may also name files below DIR (its own folder)
  -U, --force-share      list: changes nothing, since listing takes no locks
  -p, --progress         show progress also if standard error is no terminal
  -q, --quiet            print errors only

Exit code: 0 done, 1 not done, and IMAGE is as it was, 2 wrong usage.

Example:
  vimgfs snapshot create disk.qcow2 before-upgrade
  vimgfs snapshot list disk.qcow2
  vimgfs snapshot revert disk.qcow2 before-upgrade
  vimgfs snapshot delete disk.qcow2 --older-than 30d
  vimgfs snapshot create disk.vmdk before-upgrade
`

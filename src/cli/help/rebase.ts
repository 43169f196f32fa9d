/** The help of `vimgfs rebase`. */
export const HELP = `Usage: vimgfs rebase -b BASE [OPTION…] IMAGE

Makes IMAGE (qcow2 or vmdk) stand on BASE. Where the old backing file and BASE differ, IMAGE first
gets the old content, so its disk reads as before. Images with snapshots are refused, because their
snapshots would change.

  -b, --backing BASE     the new backing file, as IMAGE is to name it: a relative name starts in the
                         folder of IMAGE; "" for none
  -F, --backing-format F the format of BASE (found by its bytes)
  -u, --unsafe           change the name only: for a backing file that was moved or renamed. If BASE
                         holds something else, the disk changes. With -F, BASE need not be there.
      --force            also if other images need IMAGE
  -p, --progress         show the progress although standard error is no terminal
  -q, --quiet            print errors and warnings only
  -f, --format F         {formats} (found by its bytes)
      --allow-path DIR   IMAGE may also name files below DIR (its own folder)
      --passphrase-file FILE  as for mount: of IMAGE and the layers below, then of BASE's
  -t MODE, -T MODE       taken for qemu-img's sake; they change nothing

Nobody else may have IMAGE open.

Exit code: 0 done, 1 not done, 2 wrong usage.

Example:
  vimgfs rebase -b new-base.qcow2 overlay.qcow2
`

/** The help of `vimgfs commit`. */
export const HELP = `Usage: vimgfs commit [OPTION…] IMAGE

Writes what IMAGE holds into its backing file, and makes IMAGE empty. The base grows if IMAGE's disk
is larger. Until the base has the data for good, IMAGE keeps them. A vmdk follows the content ID of
its parent. Only qcow2 images can be made empty; others keep their data, and read the same.

  -b, --base FILE        write into FILE, one of the images that IMAGE stands on; IMAGE keeps its
                         data (the nearest)
  -d, --keep             do not make IMAGE empty
      --ignore-cid       read a vmdk whose parent has changed since, as after a commit that was cut off
      --force            also if other images, or snapshots of IMAGE, read from the base: that breaks
                         them
  -p, --progress         show the progress although standard error is no terminal
  -q, --quiet            print errors and warnings only
  -f, --format F         {formats} (found by its bytes)
      --allow-path DIR   IMAGE may also name files below DIR (its own folder)
      --passphrase-file FILE  as for mount: of IMAGE and the encrypted layers below, then of the base
  -t MODE                taken for qemu-img's sake; it changes nothing

Nobody else may have IMAGE or its base open.

Exit code: 0 done, 1 not done, 2 wrong usage.

Example:
  vimgfs commit overlay.qcow2
`

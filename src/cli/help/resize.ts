/** The help of `vimgfs resize`. */
export const HELP = `Usage: vimgfs resize [OPTION…] IMAGE [+|-]SIZE

Makes IMAGE's disk larger or smaller: SIZE (512M, 20G, 1.5T), or the difference to it. The new part
reads as zeros. Sizes are rounded up to 512 bytes. {resizable} images have sizes that change.

      --shrink           the disk may become smaller. If there is data past its new end, the line says
                         how much, and nothing is cut off without --force.
      --preallocation=MODE  what of the new part to allocate: off (the default), metadata (its tables),
                         falloc (its space), full (written with zeros)
      --upgrade          raise the version of a qcow2 image to 3 if its snapshots need that
      --force            cut data off; also change an image that others in its folder stand on
      --output=human|json  what to print: a line, or filename, before, after and lost in bytes
  -p, --progress         show the progress although standard error is no terminal
  -q, --quiet            print errors and warnings only
  -f, --format F         {formats} (found by its bytes)
      --allow-path DIR   IMAGE may also name files below DIR (its own folder)
      --passphrase-file FILE  as for mount

IMAGE may be mounted, and named by its mount point; then its disk only grows. Nobody else may have it
open. Shrink partitions and file systems before the disk, and let them
grow after it.

Exit code: 0 done, 1 not done, 2 wrong usage.

Example:
  vimgfs resize disk.qcow2 +10G
`

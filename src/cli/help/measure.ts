/** The help of `vimgfs measure`. */
export const HELP = `Usage: vimgfs measure [-O FMT] [-o OPTION,…] IMAGE
       vimgfs measure [-O FMT] [-o OPTION,…] --size SIZE

Says how large the file of a new image would be, in bytes: with the data that IMAGE (or IMAGE@TAG)
has, and with data everywhere. All tables of the disk count. Reads no data.

  -O, --target-format FMT  {creatable} (raw): all files of the image together. Compressed
                         data count as if they could not be compressed.
  -o NAME=VALUE,…        options of the new image, as for vimgfs create
      --size SIZE        for an empty disk of SIZE
  -l TAG                 the same as IMAGE@TAG; also snapshot.name=TAG, snapshot.id=ID
      --output=human|json  for people (the default) or for programs, with the fields of qemu-img measure
  -f, --format F         {formats} (found by its bytes)
  -U, --force-share      read an image that others write
      --allow-path DIR   IMAGE may also name files below DIR (its own folder)
      --ignore-cid       read a vmdk whose parent has changed since

Exit code: 0 done, 1 not done, 2 wrong usage.

Example:
  vimgfs measure -O qcow2 disk.raw
`

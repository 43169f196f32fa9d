/** The help of `vimgfs info`. */
export const HELP = `Usage: vimgfs info [OPTION…] IMAGE
       vimgfs info --partitions [OPTION…] IMAGE[@TAG]

Describes IMAGE, with the fields and numbers of qemu-img info.

      --output=human|json  for people (the default) or for programs
      --backing-chain    describe all layers down to the last backing file
      --partitions       list the partitions of the disk, or of snapshot TAG
  -f, --format F         {formats} (found by its bytes)
  -U, --force-share      read an image that a machine has open; it may be torn
      --allow-path DIR   IMAGE may also name files below DIR (its own folder)
      --passphrase-file FILE  with --partitions: see vimgfs help mount

Example:
  vimgfs info --output=json disk.qcow2
  vimgfs info --partitions disk.qcow2@before-upgrade
`

/** The help of `vimgfs info`. */
export const HELP = `Usage: vimgfs info [OPTION…] IMAGE

Describes IMAGE, with the fields and numbers of qemu-img info.

  --output=human|json    for people (the default) or for programs
  --backing-chain        describe all layers down to the last backing file
  --format F             {formats} (found by its bytes)
  --allow-path DIR       IMAGE may also name files below DIR (its own folder)

Example:
  vimgfs info --output=json disk.qcow2
`

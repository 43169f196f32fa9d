/** The help of `vimgfs help`. */
export const HELP = `Usage: vimgfs help [COMMAND]

Example:
  vimgfs help mount
`

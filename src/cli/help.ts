/** `vimgfs help`: describes each command, with an example. */
import { UsageError } from '../errors.js'
import { nearest } from '../nearest.js'
import { VERSION } from '../version.js'
import { allHelps, COMMAND_NAMES, helpOf } from './help/commands.js'
import { formatNames } from './help/names.js'
import { helpText, overviewRows } from './help/render.js'
import { print } from './output.js'

/** Returns the list of all commands. */
export async function overview(): Promise<string> {
  return `vimgfs ${VERSION}: shows virtual disk images as raw files to read and write,
and their snapshots too

Usage: vimgfs COMMAND [OPTION…] ARGUMENT…

${overviewRows(await allHelps()).join('\n')}

  --help, --version

Example: vimgfs mount disk.qcow2 /mnt/x && ls -l /mnt/x && vimgfs umount /mnt/x
`
}

export async function run([command, more]: string[]): Promise<number> {
  if (more !== undefined) throw new UsageError(`"${more}" is one argument too many`)
  print(command === undefined ? await overview() : await describe(command))
  return 0
}

async function describe(command: string): Promise<string> {
  const help = await helpOf(command)
  if (help) return helpText(command, help, await formatNames())
  const near = nearest(command, COMMAND_NAMES)
  throw new UsageError(`there is no command "${command}"${near}; vimgfs --help lists them`)
}

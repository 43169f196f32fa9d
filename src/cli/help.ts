/** `vimgfs help`: describes each command, with an example. */
import { UsageError } from '../errors.js'
import { VERSION } from '../version.js'
import { print } from './output.js'

export function overview(): string {
  return `vimgfs ${VERSION}: shows virtual disk images as raw files to read and write, and their snapshots too

Usage: vimgfs COMMAND [OPTION…] ARGUMENT…

  mount IMAGE MOUNTPOINT   show IMAGE's disk and snapshots as files in the folder MOUNTPOINT
  umount MOUNTPOINT        unmount it, and return when its server has ended
  refresh MOUNTPOINT       show what others have made of an image that is mounted
  check IMAGE              find leaks and damage in its tables, and repair them
  snapshot ACTION IMAGE    list, take and delete snapshots, and go back to one
  info IMAGE               show its format, sizes, snapshots and backing files
  commit IMAGE             write what it holds into its backing file
  rebase -b BASE IMAGE     make it stand on another backing file
  create FILE SIZE         make a new image, or one that stands on another
  convert SRC… DST         copy a disk into an image of another kind
  map IMAGE                show which parts are data, and where they are
  compare IMAGE IMAGE      tell whether two disks have the same content
  diff IMAGE TAG           show what has changed since a snapshot
  resize IMAGE SIZE        make its disk larger or smaller
  measure IMAGE            say how large a new image of its disk would be
  help COMMAND             show all options of a command, with an example

  --help, --version

Example: vimgfs mount disk.qcow2 /mnt/x && ls -l /mnt/x && vimgfs umount /mnt/x
`
}

/** A text may contain {formats}, {readable}, {checkable}, {creatable} and {resizable}: names of formats. */
const HELP: Record<string, () => Promise<{ HELP: string }>> = {
  mount: () => import('./help/mount.js'),
  umount: () => import('./help/umount.js'),
  refresh: () => import('./help/refresh.js'),
  check: () => import('./help/check.js'),
  snapshot: () => import('./help/snapshot.js'),
  info: () => import('./help/info.js'),
  commit: () => import('./help/commit.js'),
  rebase: () => import('./help/rebase.js'),
  create: () => import('./help/create.js'),
  convert: () => import('./help/convert.js'),
  map: () => import('./help/map.js'),
  compare: () => import('./help/compare.js'),
  diff: () => import('./help/diff.js'),
  resize: () => import('./help/resize.js'),
  measure: () => import('./help/measure.js'),
  help: () => import('./help/help.js'),
}

export async function run([command, more]: string[]): Promise<number> {
  if (more !== undefined) throw new UsageError(`"${more}" is one argument too many`)
  print(command === undefined ? overview() : await withFormats(await helpOf(command)))
  return 0
}

async function helpOf(command: string): Promise<string> {
  const load = Object.hasOwn(HELP, command) ? HELP[command] : undefined
  if (load) return (await load()).HELP
  throw new UsageError(`there is no command "${command}"; vimgfs --help lists them`)
}

/** Fills in the names of formats, which the registry knows. */
async function withFormats(text: string): Promise<string> {
  if (!text.includes('{')) return text
  const { CHECKABLE_NAMES, CREATABLE_NAMES, FORMAT_NAMES, RESIZABLE_NAMES, listed } = await import(
    '../formats/registry.js'
  )
  return text
    .replaceAll('{formats}', listed(FORMAT_NAMES, 'or'))
    .replaceAll('{readable}', FORMAT_NAMES.join(', '))
    .replaceAll('{resizable}', listed(RESIZABLE_NAMES, 'and'))
    .replaceAll('{creatable}', listed(CREATABLE_NAMES, 'or'))
    .replaceAll('{checkable}', CHECKABLE_NAMES.join(', '))
}

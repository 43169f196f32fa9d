/** File systems with reflinks, in files of their own. */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { loop, mountDevice } from './loop.js'
import { needs, needsRoot, run, tempFolder } from './run.js'

const MIB = 2 ** 20

export const REFLINK_TYPES = ['xfs', 'btrfs'] as const
export type ReflinkType = (typeof REFLINK_TYPES)[number]

const MAKERS: Record<ReflinkType, { readonly words: readonly string[]; readonly mib: number }> = {
  xfs: { words: ['mkfs.xfs', '-q', '-m', 'reflink=1'], mib: 320 },
  btrfs: { words: ['mkfs.btrfs', '-q'], mib: 160 },
}

export const noReflinks = (type: ReflinkType): { skip?: string } => ({
  ...needs(MAKERS[type].words[0] as string, 'qemu-img', 'qemu-io', 'losetup'),
  ...needsRoot(),
})

/** Returns a folder of a new file system, until the test ends. */
export async function reflinkFolder(t: Test, type: ReflinkType): Promise<string> {
  const file = join(tempFolder(t), 'device')
  const { words, mib } = MAKERS[type]
  const [command = '', ...flags] = words
  writeFileSync(file, '')
  truncateSync(file, mib * MIB)
  await run(command, [...flags, file])
  const { device } = await loop(t, file)
  return (await mountDevice(t, device, type)).folder
}

/** Runs commands of qemu-io on an image, in turn. */
export const qemuIo = (
  image: string,
  format: string,
  commands: readonly string[],
): Promise<string> =>
  run('qemu-io', ['-f', format, ...commands.flatMap(each => ['-c', each]), image])

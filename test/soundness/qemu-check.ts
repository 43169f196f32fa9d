/** What `qemu-img check` says of images that cuts and errors left: a sample, for each takes a process. */
import { once } from 'node:events'
import {
  closeSync,
  constants,
  ftruncateSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { type LightProcess, spawnLight } from '../support/light-spawn.js'
import { commandEnvironment } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { judge } from './judge.js'
import { readImage } from '../support/writable.js'
import { SECRET } from './encrypted-kinds.js'
import { diskFiles, type Kind } from './kinds.js'
import { DATA_FILE, IMAGE_FILE } from './scenario.js'

/** At once, and for how many images each: starting a shell costs more than running it. */
const SHELLS = 2
const IMAGES_A_SHELL = 24
const CLEAN = 0
const LEAKS = 3

export type QemuVerdict = 'clean' | 'leaks' | 'corrupt'

/** Throws for the first image that QEMU calls corrupt; resolves to how many it looked at. */
export async function qemuChecks(
  kind: Kind,
  images: readonly (readonly MemoryStore[])[],
): Promise<number> {
  await qemuVerdicts(kind, images, (_, verdict, said) => {
    if (verdict === 'corrupt') throw new Error(`${kind.title}: qemu-img check: ${said}`)
  })
  return images.length
}

/** Tells `tell` what `qemu-img check` says of each image, and in which words. */
export async function qemuVerdicts(
  kind: Kind,
  images: readonly (readonly MemoryStore[])[],
  tell: (index: number, verdict: QemuVerdict, said: string) => void,
): Promise<void> {
  const shells = Math.min(SHELLS, Math.ceil(images.length / IMAGES_A_SHELL))
  const checkers = Array.from({ length: shells }, (_, id) => new Checker(kind, `cut${id}.qcow2`))
  let next = 0
  try {
    await Promise.all(
      checkers.map(async checker => {
        for (let i = next++; i < images.length; i = next++) {
          const code = await checker.check(images[i] as readonly MemoryStore[])
          const verdict = code === CLEAN ? 'clean' : code === LEAKS ? 'leaks' : 'corrupt'
          tell(i, verdict, `exit ${code}, ${checker.said}`)
        }
      }),
    )
  } finally {
    for (const checker of checkers) checker.end()
  }
}

/** What names an image to QEMU, with what it is encrypted by. */
function imageArguments({ encryption }: Kind, name: string): string {
  if (encryption?.qemuOptions === undefined) return `-f qcow2 ${name}`
  return `${SECRET} --image-opts driver=qcow2,${encryption.qemuOptions},file.filename=${name}`
}

/** Of so many images one is read by QEMU, too. */
const READ_EACH = 4

export interface QemuReading {
  readonly title: string
  /** Where QEMU finds what the images name, and they are put under these names. */
  readonly folder: string
  readonly names: readonly string[]
  /** What names the image to QEMU, in its folder. */
  readonly image: string
  disk(files: readonly MemoryStore[]): Buffer
}

/** Throws for the first image that QEMU reads something else in; resolves to how many it read. */
export async function qemuReadsAlike(
  { title, folder, names, image, disk }: QemuReading,
  images: readonly (readonly MemoryStore[])[],
): Promise<number> {
  const read = images.filter((_, index) => index % READ_EACH === 0)
  const shell = new QemuShell(folder, 'read.output')
  try {
    for (const files of read) {
      files.forEach((file, i) => {
        writeFileSync(join(folder, names[i] as string), file.bytes())
      })
      const code = await shell.run(`convert -O raw ${image} read.raw`)
      if (code !== 0) throw new Error(`${title}: qemu-img convert: ${shell.said}`)
      const theirs = readFileSync(join(folder, 'read.raw'))
      const ours = disk(files)
      // It rounds the size down to whole sectors.
      if (ours.length - theirs.length < 512 && ours.subarray(0, theirs.length).equals(theirs))
        continue
      throw new Error(`${title}: QEMU reads something else`)
    }
  } finally {
    shell.end()
  }
  return read.length
}

/** The same, of encrypted images, where QEMU knows the key. */
export async function qemuReads(
  kind: Kind,
  images: readonly (readonly MemoryStore[])[],
): Promise<number> {
  const { title, folder, encryption } = kind
  if (encryption?.qemuOptions === undefined) return 0
  const image = imageArguments(kind, 'read.qcow2')
  const names = ['read.qcow2', 'data.raw']
  const disk = (files: readonly MemoryStore[]) => readImage(diskFiles(kind, files)).disk
  return await qemuReadsAlike({ title, folder, names, image, disk }, images)
}

/** Checks one image after the other. */
class Checker {
  private readonly path: string
  private readonly shell: QemuShell

  constructor(
    private readonly kind: Kind,
    private readonly name: string,
  ) {
    this.path = join(kind.folder, name)
    this.shell = new QemuShell(kind.folder, `${name}.output`)
  }

  /** The exit code. */
  check(files: readonly MemoryStore[]): Promise<number> {
    const { kind } = this
    const image = files[IMAGE_FILE] as MemoryStore
    replaceContent(this.path, image.bytes())
    // All that QEMU wants of the data file is that it is there.
    const data = files[DATA_FILE]
    if (data) writeFileSync(join(kind.folder, 'data.raw'), '')
    const isToBeRepaired = kind.isLazy && judge(image).isDirty
    return this.shell.run(
      `check ${isToBeRepaired ? '-r all' : ''} ${imageArguments(kind, this.name)}`,
    )
  }

  /** What the last check printed. */
  get said(): string {
    return this.shell.said
  }

  end(): void {
    this.shell.end()
    rmSync(this.path, { force: true })
  }
}

/** Writes a file anew in place: a file system that truncates it first frees its blocks, and flushes it when it is closed. */
function replaceContent(path: string, bytes: Buffer): void {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT)
  try {
    writeSync(fd, bytes, 0, bytes.length, 0)
    ftruncateSync(fd, bytes.length)
  } finally {
    closeSync(fd)
  }
}

/**
 * A shell that starts one qemu-img after the other in `folder`: from this process that would cost several
 * times as much.
 */
export class QemuShell {
  private readonly output: string
  private readonly process: LightProcess

  constructor(folder: string, output: string) {
    this.output = join(folder, output)
    const loop = `while read -r arguments; do
      timeout 300 qemu-img $arguments > ${output} 2>&1; echo $?; done`
    this.process = spawnLight('sh', ['-c', loop], {
      cwd: folder,
      env: commandEnvironment(undefined),
      ...{ stdin: 'socket', stderr: 'inherit' },
    })
  }

  /** The exit code. */
  async run(line: string): Promise<number> {
    this.process.stdin?.write(`${line}\n`)
    const [answer] = await once(this.process.stdout, 'data')
    return Number(String(answer))
  }

  /** What the last command printed. */
  get said(): string {
    return readFileSync(this.output, 'utf8')
  }

  end(): void {
    this.process.stdin?.end()
  }
}

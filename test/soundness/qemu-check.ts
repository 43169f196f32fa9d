/** What `qemu-img check` says of images that cuts and errors left: a sample, for each takes a process. */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import type { MemoryStore } from '../support/stores.js'
import { judge } from './judge.js'
import type { Kind } from './kinds.js'
import { DATA_FILE, IMAGE_FILE } from './scenario.js'

/** At once. */
const SHELLS = 2
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
  const shells = Array.from({ length: SHELLS }, (_, id) => new Shell(kind, `cut${id}.qcow2`))
  let next = 0
  try {
    await Promise.all(
      shells.map(async shell => {
        for (let i = next++; i < images.length; i = next++) {
          const code = await shell.check(images[i] as readonly MemoryStore[])
          const verdict = code === CLEAN ? 'clean' : code === LEAKS ? 'leaks' : 'corrupt'
          tell(i, verdict, `exit ${code}, ${shell.said}`)
        }
      }),
    )
  } finally {
    for (const shell of shells) shell.end()
  }
}

/** A shell that starts one check after the other: from this process that would cost several times as much. */
class Shell {
  private readonly path: string
  private readonly output: string
  private readonly process: ChildProcessByStdio<Writable, Readable, null>

  constructor(
    private readonly kind: Kind,
    name: string,
  ) {
    this.path = join(kind.folder, name)
    this.output = `${this.path}.output`
    const loop = `while read -r options; do
      timeout 20 qemu-img check -f qcow2 $options ${name} > ${name}.output 2>&1; echo $?; done`
    this.process = spawn('sh', ['-c', loop], {
      cwd: kind.folder,
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, LC_ALL: 'C' },
    })
  }

  /** The exit code. */
  async check(files: readonly MemoryStore[]): Promise<number> {
    const { kind } = this
    const image = files[IMAGE_FILE] as MemoryStore
    writeFileSync(this.path, image.bytes())
    // All that QEMU wants of the data file is that it is there.
    const data = files[DATA_FILE]
    if (data) writeFileSync(join(kind.folder, 'data.raw'), '')
    const isToBeRepaired = kind.isLazy && judge(image).isDirty
    this.process.stdin.write(isToBeRepaired ? '-r all\n' : '\n')
    const [answer] = await once(this.process.stdout, 'data')
    return Number(String(answer))
  }

  /** What the last check printed. */
  get said(): string {
    return readFileSync(this.output, 'utf8')
  }

  end(): void {
    this.process.stdin.end()
    rmSync(this.path, { force: true })
  }
}

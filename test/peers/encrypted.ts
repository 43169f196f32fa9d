/** Encrypted images as QEMU's tools make and read them. */
import { join } from 'node:path'
import { attempt, type RunOptions, run } from '../support/run.js'
import { quickClock } from './quick-clock.js'

/** Of `encrypt.` options: what a qcow2 image is encrypted with; only `format` for legacy AES. */
export interface Encryption {
  readonly format: 'luks' | 'aes'
  readonly 'cipher-alg'?: string
  readonly 'cipher-mode'?: string
  readonly 'ivgen-alg'?: string
  readonly 'ivgen-hash-alg'?: string
  readonly 'hash-alg'?: string
}

export interface EncryptedImage {
  readonly file: string
  readonly format: 'qcow' | 'qcow2'
  readonly passphrase: string
  /** Of each encrypted layer below, the next one first. */
  readonly below?: readonly string[]
}

/** QEMU 7.2 measures its own key derivation, and gives up where the kernel's clock has not moved on. */
const UNMEASURED = /Unable to get accurate CPU usage/
const TRIES = 200

/** Runs a command of qemu-img that makes a LUKS header. */
export async function creating(args: readonly string[], options: RunOptions = {}): Promise<void> {
  for (let tries = 1; ; tries++) {
    const env = { ...quickClock(), ...options.env }
    const { code, stdout, stderr } = await attempt('qemu-img', args, { ...options, env })
    if (code === 0) return
    if (tries === TRIES || !UNMEASURED.test(stderr)) {
      throw new Error(`qemu-img ${args.join(' ')}: exit ${code} ${stderr}${stdout}`)
    }
  }
}

/** Key derivation need not take long to be right. */
const QUICK = 'encrypt.iter-time=10'

const secret = (id: string, passphrase: string): string[] => [
  '--object',
  `secret,id=${id},data=${passphrase}`,
]

/** Makes an empty image. `options` are more of -o, such as cluster_size. */
export async function makeEncrypted(
  image: EncryptedImage,
  sizeBytes: number,
  encryption: Encryption,
  { options = [], more = [] }: { options?: readonly string[]; more?: readonly string[] } = {},
): Promise<void> {
  const chosen = Object.entries(encryption).map(([name, value]) => `encrypt.${name}=${value}`)
  const quick = encryption.format === 'luks' ? [QUICK] : []
  const list = ['encrypt.key-secret=s', ...chosen, ...quick, ...options].join(',')
  await creating([
    ...['create', '-q', '-f', image.format],
    ...secret('s', image.passphrase),
    ...['-o', list],
    ...more,
    image.file,
    String(sizeBytes),
  ])
}

/** What names it to QEMU, with the passphrases of all its layers. */
export function asQemuNames({ file, format, passphrase, below = [] }: EncryptedImage): string[] {
  const secrets = [passphrase, ...below].flatMap((each, i) => secret(`s${i}`, each))
  const keys = ['', ...below].map((_, i) => `${'backing.'.repeat(i)}encrypt.key-secret=s${i}`)
  const options = [`driver=${format}`, `file.filename=${file}`, ...keys]
  return [...secrets, '--image-opts', options.join(',')]
}

/** Runs commands of qemu-io on it. */
export async function encryptedIo(
  image: EncryptedImage,
  commands: readonly string[],
): Promise<void> {
  const output = await run('qemu-io', [
    ...['-d', 'unmap'],
    ...commands.flatMap(command => ['-c', command]),
    ...asQemuNames(image),
  ])
  const failure = /.*(failed|error|invalid|not supported).*/i.exec(output)
  if (failure) throw new Error(`qemu-io: ${failure[0]}`)
}

/** Takes a snapshot of it. */
export async function takeSnapshot(image: EncryptedImage, name: string): Promise<void> {
  await run('qemu-img', ['snapshot', '-c', name, ...asQemuNames(image)])
}

/** What QEMU reads of it, or of one of its snapshots, as a raw file in `folder`. */
export async function decrypted(
  image: EncryptedImage,
  folder: string,
  snapshot?: string,
): Promise<string> {
  const raw = join(folder, 'decrypted')
  const [objects, names] = [asQemuNames(image).slice(0, -1), asQemuNames(image).at(-1) as string]
  const from = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`]
  await run('qemu-img', ['convert', ...objects, ...from, '-O', 'raw', names, raw])
  return raw
}

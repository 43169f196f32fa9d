/** A set of numbers below `length`, one bit for each. */
export class Bits {
  private readonly bytes: Uint8Array

  constructor(length: number) {
    this.bytes = new Uint8Array(Math.ceil(length / 8))
  }

  set(index: number): void {
    this.bytes[index >>> 3] = (this.bytes[index >>> 3] as number) | (1 << (index & 7))
  }

  has(index: number): boolean {
    return ((this.bytes[index >>> 3] as number) & (1 << (index & 7))) !== 0
  }
}
